"""HTTP/1.1 answers out of bytes, for a client that sends one request at a time on a connection.

Exact in framing (content-length, chunked, trailers; RFC 9112), because an answer that is cut or
longer than it says must not count, and cheap, because it shares a core with what it measures.
"""

from typing import Final, NamedTuple

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 4 * 1024
_HEX: Final = b"0123456789abcdefABCDEF"
_EVENT: Final = b"data: "


class MalformedAnswerError(ValueError):
    """Bytes that are no answer to one request; the text says why."""


class Answer(NamedTuple):
    """One whole answer; `head` is in lower case and without its last line end."""

    status: int
    head: bytes
    body: bytes


class AnswerParser:
    """Cuts the bytes of one connection into answers."""

    __slots__ = ("_buffer", "_chunks", "_head", "_in_trailer", "_length", "_status")

    def __init__(self) -> None:
        self._buffer = b""
        self._reset()

    def _reset(self) -> None:
        self._head: bytes | None = None
        self._status = 0
        # None: the body is chunked.
        self._length: int | None = None
        self._chunks: list[bytes] = []
        self._in_trailer = False

    @property
    def partial_events(self) -> int:
        """How many events of a streamed answer that is under way have arrived."""
        return event_count(b"".join(self._chunks))

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes that came in; return the answer that they complete, if they do.

        Raises:
            MalformedAnswerError: The bytes are no answer, have no length, or go on after its end.
        """
        data = self._buffer + data if self._buffer else data
        position = 0
        if self._head is None:
            end = data.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
            if end < 0:
                if len(data) >= _MAX_HEAD_BYTES:
                    raise MalformedAnswerError("the head is too large")
                self._buffer = data
                return None
            self._take_head(data[:end].lower())
            position = end + 4
        if self._length is None:
            position, is_whole = self._take_chunks(data, position)
        else:
            is_whole = len(data) - position >= self._length
        if not is_whole:
            self._buffer = data[position:]
            return None
        return self._finish(data, position)

    def _finish(self, data: bytes, position: int) -> Answer:
        if self._length is None:
            body, end = b"".join(self._chunks), position
        else:
            end = position + self._length
            body = data[position:end]
        if end != len(data):
            raise MalformedAnswerError("bytes follow the end of the answer")
        answer = Answer(self._status, self._head or b"", body)
        self._buffer = b""
        self._reset()
        return answer

    def _take_head(self, head: bytes) -> None:
        line, _, _ = head.partition(b"\r\n")
        version, _, rest = line.partition(b" ")
        digits = rest[:3]
        if version != b"http/1.1" or len(digits) != 3 or not digits.isdigit():
            raise MalformedAnswerError(f"{line[:60]!r} is no status line of HTTP/1.1")
        status = int(digits)
        if status < 200:
            raise MalformedAnswerError(f"status {status} was not asked for")
        self._length = _length_of(head, status)
        self._head, self._status = head, status

    def _take_chunks(self, data: bytes, position: int) -> tuple[int, bool]:
        """Take whole chunks from `position`; return where they end, and whether the body does."""
        while (end := data.find(b"\r\n", position, position + _MAX_LINE_BYTES)) >= 0:
            line = data[position:end]
            if self._in_trailer:
                position = end + 2
                if not line:
                    return position, True
                continue
            size = _chunk_size(line)
            if size == 0:
                self._in_trailer = True
                position = end + 2
                continue
            start, stop = end + 2, end + 2 + size
            if len(data) < stop + 2:
                return position, False
            if data[stop : stop + 2] != b"\r\n":
                raise MalformedAnswerError("a chunk is longer than its size")
            self._chunks.append(data[start:stop])
            position = stop + 2
        if len(data) - position >= _MAX_LINE_BYTES:
            raise MalformedAnswerError("a line of the chunked body is too long")
        return position, False


def event_count(body: bytes) -> int:
    """Return how many server-sent events with data are in `body`, whose texts hold no `data: `."""
    return body.count(_EVENT)


def _length_of(head: bytes, status: int) -> int | None:
    """Return how long the body is; None when it is chunked."""
    lengths, codings = _values(head, b"content-length"), _values(head, b"transfer-encoding")
    if codings:
        if codings != [b"chunked"] or lengths:
            raise MalformedAnswerError("the length of the body is given twice or not understood")
        return None
    if not lengths and status in (204, 304):
        return 0
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise MalformedAnswerError("the body has no length")
    return int(lengths[0])


def _values(head: bytes, name: bytes) -> list[bytes]:
    mark = b"\r\n%b:" % name
    if mark not in head:
        return []
    return [part.partition(b"\r\n")[0].strip() for part in head.split(mark)[1:]]


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not 1 <= len(digits) <= 8 or digits.strip(_HEX):
        raise MalformedAnswerError(f"{line[:20]!r} is no size of a chunk")
    return int(digits, 16)
