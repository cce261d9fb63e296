"""From an ASGI request to a plain value, and the refusals that need no handler."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from dataplane.domain.calls import Dialect
from dataplane.domain.client_addresses import ClientAddresses
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.exchange import HttpRequest

# What an ASGI server hands over: https://asgi.readthedocs.io/en/latest/specs/main.html
Scope = MutableMapping[str, Any]  # Any: the specification leaves the values to their keys
Message = MutableMapping[str, Any]  # Any: as above
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES: Final = 10 * 1024 * 1024


class ClientLeftError(Exception):
    """The client closed its connection before its request was whole."""


async def read_request(
    scope: Scope,
    receive: Receive,
    addresses: ClientAddresses,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> HttpRequest:
    """Return the request of `scope`, read to its end.

    Raises:
        Refusal: REQUEST_TOO_LARGE beyond `max_body_bytes`; INVALID_REQUEST for a length that two headers
            give (RFC 9112, section 6.1: a way to smuggle requests).
        ClientLeftError: It was cut.
    """
    headers = headers_of(scope["headers"])
    check_length(headers, max_body_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_body_bytes:
            raise too_large(max_body_bytes)
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    address = addresses.of(peer_of(scope), headers)
    return HttpRequest(scope["method"], scope["path"], headers, body, address)


def peer_of(scope: Scope) -> str:
    """Return the address of the other end of the connection; empty where it has none."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def headers_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by lower-case name; what stands twice is joined, as RFC 9110 has it."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def check_length(headers: Mapping[str, str], max_body_bytes: int = MAX_BODY_BYTES) -> None:
    """Refuse a body that is announced as too large, or with two lengths."""
    length = headers.get("content-length")
    if length is None:
        return
    if "transfer-encoding" in headers:
        raise Refusal(Reason.INVALID_REQUEST, "The body's length is given twice.")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_body_bytes:
        raise too_large(max_body_bytes)


def too_large(max_body_bytes: int = MAX_BODY_BYTES) -> Refusal:
    """Return the refusal of a body that is beyond what is taken."""
    return Refusal(
        Reason.REQUEST_TOO_LARGE,
        f"The body is larger than {_size(max_body_bytes)}.",
        details={"limit_bytes": max_body_bytes},
    )


def _size(count_bytes: int) -> str:
    return f"{count_bytes >> 20} MiB" if count_bytes >= 1 << 20 else f"{count_bytes >> 10} KiB"


def dialect_of(path: str, headers: MutableMapping[str, str] | dict[str, str]) -> Dialect:
    """Return whose errors the caller of a path reads."""
    if path.startswith("/v1/messages") or "anthropic-version" in headers:
        return Dialect.ANTHROPIC
    return Dialect.OPENAI
