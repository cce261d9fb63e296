"""Hypercorn, set up for long streams: one process, one loop, a drain of our own length."""

import asyncio
import socket
from typing import Final, cast

from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from dataplane.http.entry import AsgiApp

# Streams in flight may finish for so long after SIGTERM. Orchestrators usually allow 30 s and more.
DRAIN_SECONDS: Final = 30.0
# Multiplexed connections lose their open streams when this is reached (default: 1,000).
_REQUESTS_PER_CONNECTION: Final = 10_000_000
_KEEP_ALIVE_SECONDS: Final = 75
_BACKLOG: Final = 2_048
_MAX_HEAD_BYTES: Final = 64 * 1024


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host`; port 0 takes a free one.

    Raises:
        OSError: The address is taken or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
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
    """Serve `app` on `sock` until `stop` is set; return when streams in flight are over.

    Streams that are still open `drain_seconds` later are cut.
    """
    config = Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.graceful_timeout = drain_seconds
    config.keep_alive_max_requests = _REQUESTS_PER_CONNECTION
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = _MAX_HEAD_BYTES
    config.backlog = _BACKLOG

    async def stopped() -> None:
        await stop.wait()

    await hypercorn_serve(cast("ASGIFramework", app), config, shutdown_trigger=stopped)
