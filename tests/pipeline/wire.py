"""HTTP/1.1 over a bare socket: what no client library would send."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.pipeline.conftest import KEY, DataPlane

DEADLINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WireAnswer:
    """One answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def head(path: str, *lines: bytes, method: str = "POST", key: str | None = KEY) -> bytes:
    """Return the head of a request, with a good credential unless `key` is None."""
    own = [f"{method} {path} HTTP/1.1".encode(), b"host: gateway"]
    if key is not None:
        own.append(f"authorization: Bearer {key}".encode())
    return b"\r\n".join((*own, *lines)) + b"\r\n\r\n"


async def raw(data_plane: DataPlane, *parts: bytes) -> WireAnswer:
    """Send `parts` and return the answer; a server that answers early ends the sending."""
    host, port = data_plane.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            sending = asyncio.create_task(_send(writer, parts))
            try:
                return await _answer(reader)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    finally:
        writer.close()


async def _send(writer: asyncio.StreamWriter, parts: tuple[bytes, ...]) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()


async def _answer(reader: asyncio.StreamReader) -> WireAnswer:
    raw_head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw_head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return WireAnswer(int(first.split(" ")[1]), headers, body)


def check_refusal(answer: Any, status: int, code: str, dialect: str) -> dict[str, Any]:
    """Assert everything that every refusal has; return its error object."""
    assert answer.status == status if isinstance(answer, WireAnswer) else True
    if not isinstance(answer, WireAnswer):
        answer = WireAnswer(answer.status_code, dict(answer.headers), answer.content)
    assert (answer.status, answer.headers.get("x-tollkeeper-error")) == (status, code), answer
    assert answer.headers["content-type"] == "application/json"
    request_id = answer.headers["x-request-id"]
    assert request_id == answer.headers["request-id"]
    assert len(request_id) == 36
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    for word in (b"Traceback", b"Error:", b"msgspec", b'File "', b".py", b"Exception"):
        assert word not in answer.body
    document = answer.json()
    error: dict[str, Any] = document["error"]
    assert error["message"]
    if dialect == "anthropic":
        assert (document["type"], document["request_id"]) == ("error", request_id)
    else:
        assert error["code"] == code
        assert {"message", "type", "param", "code"} <= set(error)
    return error
