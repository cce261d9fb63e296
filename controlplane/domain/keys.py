"""Minting, hashing and displaying API keys, administrators' tokens and devices' session tokens.

An API key is `<prefix>_<env>_<id>_<secret><check>`: the id is that of the resource, the secret 256 random bits in base62
(43 digits), the check the CRC-32 of all before it in base62 (6 digits), so that a typing error is seen without a
look-up. Only the SHA-256 of the whole text is kept: there is nothing to guess in 256 random bits, so nothing slow is needed.
"""

import hashlib
import re
import zlib
from typing import Final

BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_BYTES: Final = 32
SECRET_DIGITS: Final = 43
CHECK_DIGITS: Final = 6
TOKEN_PREFIX: Final = "tka_"  # noqa: S105 - a format, not a secret
SESSION_PREFIX: Final = "tks_"
KEY_PREFIX: Final = "tk"

# Enough to tell keys apart, and nothing of the secret.
_DISPLAYED_ID_CHARACTERS: Final = 6
_TOKEN: Final = re.compile(rf"{TOKEN_PREFIX}[0-9A-Za-z]{{{SECRET_DIGITS}}}")


def base62(number: int, digits: int) -> str:
    """Write `number` in base62, most significant digit first, padded with `0`.

    Raises:
        ValueError: It is negative or does not fit.
    """
    if not 0 <= number < 62**digits:
        raise ValueError("the number does not fit")
    written = ""
    for _ in range(digits):
        number, digit = divmod(number, 62)
        written = BASE62[digit] + written
    return written


def mint_api_key(key_id: str, secret: bytes, *, test: bool, prefix: str = KEY_PREFIX) -> str:
    """Return the text of a key.

    Args:
        key_id: The resource id: 12 characters of `[a-z0-9]`.
        secret: 32 random bytes, most significant first.
        test: For test traffic: the text says `test` instead of `live`.
        prefix: What the text begins with.

    Raises:
        ValueError: `secret` is not 32 bytes.
    """
    body = f"{prefix}_{'test' if test else 'live'}_{key_id}_{_secret_digits(secret)}"
    return body + base62(zlib.crc32(body.encode()), CHECK_DIGITS)


def mint_administrator_token(secret: bytes) -> str:
    """Return the text of an administrator's token from 32 random bytes.

    Raises:
        ValueError: `secret` is not 32 bytes.
    """
    return TOKEN_PREFIX + _secret_digits(secret)


def mint_session_token(secret: bytes) -> str:
    """Return the text of a device's session token from 32 random bytes.

    Raises:
        ValueError: `secret` is not 32 bytes.
    """
    return SESSION_PREFIX + _secret_digits(secret)


def is_administrator_token(text: str) -> bool:
    """Say whether `text` has the form of an administrator's token."""
    return _TOKEN.fullmatch(text) is not None


def sha256_of(text: str) -> bytes:
    """Return the digest by which a key or token is looked up: 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def display_of(api_key: str) -> str:
    """Return the first characters of a key, to tell keys apart: `tk_live_4f9z2k…`."""
    prefix, environment, key_id, _ = api_key.split("_", 3)
    return f"{prefix}_{environment}_{key_id[:_DISPLAYED_ID_CHARACTERS]}…"


def _secret_digits(secret: bytes) -> str:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret is {SECRET_BYTES} bytes")
    return base62(int.from_bytes(secret), SECRET_DIGITS)
