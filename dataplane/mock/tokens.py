"""Tokens of the mock provider: four UTF-8 bytes each, the last one possibly shorter.

Text is cut at the last character boundary at or before every fourth byte. A character has at most
four bytes, so no piece between two such cuts is empty, and after `k` pieces between `4k - 3` and
`4k` bytes were sent: exactly `k` tokens. One piece is therefore one token, whatever the script:

    "aé€b" is 1 + 2 + 3 + 1 bytes -> pieces "aé" (3 bytes) and "€b" (4 bytes) -> 2 tokens
"""

from collections.abc import Iterator

BYTES_PER_TOKEN = 4

# No white space: nothing on the way may trim the answer and change its count.
_FILLER = "lorem-ipsum-dolor-sit-amet-"


def byte_count(text: str) -> int:
    """Return the number of UTF-8 bytes of `text`."""
    return len(text) if text.isascii() else len(text.encode())


def token_count(text_bytes: int) -> int:
    """Return the tokens of a text of `text_bytes` bytes, rounded up."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def filler(output_tokens: int) -> str:
    """Return an ASCII text of exactly `output_tokens` tokens."""
    length_bytes = output_tokens * BYTES_PER_TOKEN
    return (_FILLER * (length_bytes // len(_FILLER) + 1))[:length_bytes]


def cut_to_tokens(text: str, limit_tokens: int) -> str:
    """Return the longest start of `text` that has at most `limit_tokens` tokens."""
    limit_bytes = limit_tokens * BYTES_PER_TOKEN
    if byte_count(text) <= limit_bytes:
        return text
    data = text.encode()
    return data[: _boundary(data, limit_bytes)].decode()


def pieces_of(text: str) -> Iterator[str]:
    """Yield `text` in pieces of one token each, cut between characters."""
    if text.isascii():
        for start in range(0, len(text), BYTES_PER_TOKEN):
            yield text[start : start + BYTES_PER_TOKEN]
        return
    data = text.encode()
    start = 0
    for limit in range(BYTES_PER_TOKEN, len(data) + BYTES_PER_TOKEN, BYTES_PER_TOKEN):
        end = _boundary(data, limit)
        yield data[start:end].decode()
        start = end


def _boundary(data: bytes, limit: int) -> int:
    """Return the last character boundary of `data` at or before byte `limit`."""
    if limit >= len(data):
        return len(data)
    # A byte of the form 10xxxxxx continues a character (RFC 3629, section 3).
    while data[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit
