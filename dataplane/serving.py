"""Hypercorn, set up for long streams: one process, one loop, a drain of our own length."""

import asyncio
import socket
from typing import Final, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app

from dataplane.http.entry import AsgiApp

# Streams in flight may finish for so long after SIGTERM. Orchestrators usually allow 30 s and more.
DRAIN_SECONDS: Final = 30.0
# Multiplexed connections lose their open streams when this is reached (default: 1,000).
_REQUESTS_PER_CONNECTION: Final = 10_000_000
_KEEP_ALIVE_SECONDS: Final = 75
_BACKLOG: Final = 2_048
_MAX_HEAD_BYTES: Final = 64 * 1024
# A connection that was cut ends in the next turns of the loop; its bill is written in them.
_CUT_SECONDS: Final = 2.0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`; port 0 takes a free one.

    Raises:
        OSError: The address is taken or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends small writes at once (TCP_NODELAY) only then.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


async def serve(
    app: AsgiApp, sock: socket.socket, stop: asyncio.Event, drain_seconds: float = DRAIN_SECONDS
) -> None:
    """Serve `app` on `sock`, which it closes, until `stop` is set; return when streams are over.

    Streams that are still open `drain_seconds` later are cut, those too whose clients take
    nothing any more; their calls end as if the clients had left.
    """
    connections = _Connections(app)
    server = await asyncio.start_server(connections.serve, sock=sock, backlog=_BACKLOG)
    try:
        await stop.wait()
    finally:
        server.close()
        await connections.drain(drain_seconds)


class _Connections:
    """The open connections of one server.

    Hypercorn's protocols serve them. Its own loop around them is not used: at the end of its
    patience it waits for each client to take what is still unsent.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._config = _config()
        self._app = wrap_app(
            cast("ASGIFramework", app), self._config.wsgi_max_body_size, mode="asgi"
        )
        self._context = WorkerContext(None)
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = writer
        try:
            loop = asyncio.get_running_loop()
            await TCPServer(self._app, loop, self._config, self._context, {}, reader, writer)
        finally:
            del self._open[task]

    async def drain(self, seconds: float) -> None:
        """Close idle connections, let the others finish, cut those that do not within `seconds`."""
        await self._context.terminated.set()
        await self._ended(seconds)
        for writer in self._open.values():
            writer.transport.abort()
        await self._ended(_CUT_SECONDS)
        for task in self._open:
            task.cancel()

    async def _ended(self, seconds: float) -> None:
        if self._open:
            await asyncio.wait(list(self._open), timeout=seconds)


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_max_requests = _REQUESTS_PER_CONNECTION
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = _MAX_HEAD_BYTES
    return config
