"""A request and an answer as plain values, so that handlers know no framework."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

JSON_TYPE = "application/json"
EVENT_STREAM_TYPE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, read to its end. Header names are in lower case; `address` is the client's."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    address: str = ""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One answer: either a whole `body`, or a `stream` of its bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = field(default=None)
