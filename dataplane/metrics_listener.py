"""The port for metrics: `GET /metrics` and `GET /health` over HTTP/1.1, one answer per connection.

It runs on the loop that it tells of, so that what it reads does not change meanwhile. Few talk to it, and seldom: it is
bounded instead of fast. It has a port of its own because it needs no credentials; that port is not for the world.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

MAX_CONNECTIONS: Final = 16
# A scraper that says nothing for so long has gone.
DEADLINE_SECONDS: Final = 5.0
_MAX_HEAD_BYTES: Final = 8 * 1024
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
_TEXT: Final = "text/plain; charset=utf-8"

_log = structlog.get_logger(__name__)
# The content type and the body.
Exposition = Callable[[], tuple[str, bytes]]


@asynccontextmanager
async def metrics_served(host: str, port: int, expose: Exposition) -> AsyncIterator[int]:
    """Serve metrics while the block runs; yields the port, a free one for 0.

    Raises:
        OSError: The address is taken or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    sock.setblocking(False)
    listener = MetricsListener(sock, expose)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.aclose()


class MetricsListener:
    """Serves what `expose` returns, from `start` to `aclose`.

    `expose` runs on the loop for each scrape and must not block; a fault of it is logged, and the scrape gets no answer.
    """

    def __init__(self, sock: socket.socket, expose: Exposition) -> None:
        """Take over a socket that listens."""
        self._sock = sock
        self._expose = expose
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._sock.getsockname()[1])

    async def start(self) -> None:
        """Begin to serve."""
        self._server = await asyncio.start_server(
            self._serve, sock=self._sock, limit=_MAX_HEAD_BYTES
        )

    async def aclose(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            # Peers leave and fall silent: that is theirs.
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    writer.write(self._answer(await _request_line(reader)))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except Exception:
            # The last boundary: what cannot be shown must not end the listener.
            _log.exception("metrics_failed")
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    def _answer(self, line: tuple[str, str] | None) -> bytes:
        if line is None:
            return _response(400, _TEXT, b"bad request\n")
        method, path = line
        if path not in ("/metrics", "/health"):
            return _response(404, _TEXT, b"not found\n")
        if method not in ("GET", "HEAD"):
            return _response(405, _TEXT, b"method not allowed\n")
        content_type, body = self._expose() if path == "/metrics" else (_TEXT, b"healthy\n")
        return _response(200, content_type, body, is_head=method == "HEAD")


async def _request_line(reader: asyncio.StreamReader) -> tuple[str, str] | None:
    """Read a request's head; return its method and path, or None for what is no HTTP."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    return words[0], words[1].partition("?")[0]


def _response(status: int, content_type: str, body: bytes, *, is_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n"
        + ("allow: GET, HEAD\r\n" if status == 405 else "")
        + "\r\n"
    )
    return head.encode() if is_head else head.encode() + body
