"""HTTP/1.1 as far as a provider needs it: requests out of bytes, responses into bytes.

The parser takes bodies with a length and chunked ones, split over reads in any way, and several
requests in one read (RFC 9112).
"""

from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

MAX_HEAD_BYTES = 32 * 1024
# A long prompt with images fits; more than that is a mistake of the caller.
MAX_BODY_BYTES = 32 * 1024 * 1024
_MAX_LINE_BYTES = 4 * 1024

_UNOFFICIAL_PHRASES = {529: "Overloaded"}

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class MalformedRequestError(ValueError):
    """Bytes that are not a request this server takes; the connection cannot go on.

    Attributes:
        status: The HTTP status to answer with before closing.
    """

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = int(status)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the path without its query, header names in lower case, the whole body."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def keeps_alive(self) -> bool:
        """Whether the client may send another request on the connection."""
        return self.headers.get(b"connection", b"").lower() != b"close"


class _Part(Enum):
    """What the parser waits for."""

    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILER = auto()


class RequestParser:
    """Cuts the bytes of one connection into requests, keeping what is not complete yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._part = _Part.HEAD
        self._method = b""
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._missing_bytes = 0
        self._chunks = bytearray()
        self._continue = False

    @property
    def pending_bytes(self) -> int:
        """Bytes that were fed and not yet taken as a part of a request."""
        return len(self._buffer)

    @property
    def path(self) -> bytes:
        """The path of the request that is being read, as far as it is known."""
        return self._path

    def feed(self, data: bytes) -> None:
        """Add bytes that came in; nothing is parsed before `next_request`."""
        self._buffer += data

    def takes_continue(self) -> bool:
        """Return, once per request, whether its client waits for 100 before it sends the body."""
        waits = self._continue and self._part is not _Part.HEAD
        self._continue = False
        return waits

    def next_request(self) -> Request | None:
        """Return the next complete request, or None until more bytes were fed.

        Raises:
            MalformedRequestError: The bytes are no request, or larger than the bounds.
        """
        if self._part is _Part.HEAD and not self._take_head():
            return None
        if self._part is _Part.BODY:
            if len(self._buffer) < self._missing_bytes:
                return None
            return self._finish(self._take(self._missing_bytes))
        if not self._take_chunks():
            return None
        return self._finish(bytes(self._chunks))

    def _finish(self, body: bytes) -> Request:
        request = Request(self._method, self._path, self._headers, body)
        self._part, self._path = _Part.HEAD, b""
        self._continue = False
        self._chunks.clear()
        return request

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        if size == len(buffer):
            taken = bytes(buffer)
            buffer.clear()
        else:
            taken = bytes(buffer[:size])
            del buffer[:size]
        return taken

    def _take_head(self) -> bool:
        """Take the head from the buffer if it is whole, and decide how the body is framed."""
        # Empty lines before a request line are to be ignored (RFC 9112, section 2.2).
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                raise MalformedRequestError("The request head is too large.", status)
            return False
        lines = self._take(end + 4)[:end].split(b"\r\n")
        self._method, self._path = _request_line(lines[0])
        self._headers = _headers_of(lines)
        self._frame_body()
        return True

    def _frame_body(self) -> None:
        coding = self._headers.get(b"transfer-encoding")
        length = self._headers.get(b"content-length", b"0")
        if coding is None:
            if not length.isdigit() or len(length) > 12:
                raise MalformedRequestError("The content-length is not a number.")
            self._part, self._missing_bytes = _Part.BODY, int(length)
            _check_body_size(self._missing_bytes)
        elif coding.lower() != b"chunked":
            status = HTTPStatus.NOT_IMPLEMENTED
            raise MalformedRequestError("The transfer-encoding is not known.", status)
        elif b"content-length" in self._headers:
            # Two lengths are how requests are smuggled past a proxy (RFC 9112, section 6.1).
            raise MalformedRequestError("A request has one length, not two.")
        else:
            self._part = _Part.CHUNK_SIZE
        self._continue = self._headers.get(b"expect", b"").lower() == b"100-continue"

    def _take_chunks(self) -> bool:
        """Move chunks from the buffer to the body; return whether the last one was among them."""
        while True:
            if self._part is _Part.CHUNK:
                if len(self._buffer) < self._missing_bytes + 2:
                    return False
                chunk = self._take(self._missing_bytes + 2)
                if chunk[-2:] != b"\r\n":
                    raise MalformedRequestError("A chunk is longer than its size.")
                self._chunks += chunk[:-2]
                self._part = _Part.CHUNK_SIZE
                continue
            line = self._take_line()
            if line is None:
                return False
            if self._part is _Part.TRAILER:
                if not line:
                    return True
                continue
            self._missing_bytes = _chunk_size(line)
            _check_body_size(len(self._chunks) + self._missing_bytes)
            self._part = _Part.CHUNK if self._missing_bytes else _Part.TRAILER

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, _MAX_LINE_BYTES)
        if end >= 0:
            return self._take(end + 2)[:end]
        if len(self._buffer) >= _MAX_LINE_BYTES:
            raise MalformedRequestError("A line of the chunked body is too long.")
        return None


def response(status: int, body: bytes, extra_head: bytes = b"") -> bytes:
    """Return a whole JSON response; `extra_head` holds complete header lines."""
    phrase = _UNOFFICIAL_PHRASES.get(status) or _phrase(status)
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status,
        phrase.encode(),
        len(body),
        extra_head,
        body,
    )


def chunk(data: bytes) -> bytes:
    """Return `data`, which is not empty, as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unassigned"


def _request_line(line: bytes) -> tuple[bytes, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[0].isalpha() or not parts[1].startswith(b"/"):
        raise MalformedRequestError("The request line is malformed.")
    if parts[2] != b"HTTP/1.1":
        status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        raise MalformedRequestError("Only HTTP/1.1 is spoken here.", status)
    return parts[0], parts[1].partition(b"?")[0]


def _headers_of(lines: list[bytes]) -> dict[bytes, bytes]:
    """Return the headers in `lines`, of which the first is the request line."""
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise MalformedRequestError("A header line is malformed.")
        name = name.lower()
        if name in headers and name in (b"content-length", b"transfer-encoding"):
            raise MalformedRequestError("A request has one length, not two.")
        headers[name] = value.strip()
    return headers


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    # int() would also take a sign, white space and underscores.
    if not 1 <= len(digits) <= 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise MalformedRequestError("A chunk size is not a number.")
    return int(digits, 16)


def _check_body_size(size_bytes: int) -> None:
    if size_bytes > MAX_BODY_BYTES:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        raise MalformedRequestError("The request body is too large.", status)
