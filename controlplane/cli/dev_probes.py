"""Two questions about this machine: is a port free, and does a program answer."""

import asyncio
import contextlib
import errno
import socket
from typing import Final
from urllib.parse import urlsplit

_POLL_S: Final = 0.05
# One probe of a program on this machine; a busy one answers at the next.
_PROBE_DEADLINE_S: Final = 2.0


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen on `port` of `host` now.

    Raises:
        OSError: Nobody can: the host is not this machine's, or the port is not for this user.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # As servers do: connections that are still closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


async def wait_until_free(host: str, port: int, deadline_s: float) -> bool:
    """Tell whether `port` of `host` is free, or becomes so within `deadline_s` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while not is_free(host, port):  # noqa: ASYNC110 - the kernel has no event for it
                await asyncio.sleep(_POLL_S)
            return True
    return False


async def status_of(base_url: str, path: str) -> int | None:
    """Return the HTTP status of `GET path`, or None when there was no answer in time.

    Written out, because a whole HTTP client costs more to import than everything else that `dev` does.
    """
    parts = urlsplit(base_url)
    request = f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_PROBE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(request.encode())
            status_line = await reader.readline()
        return int(status_line.split(b" ")[1])
    except (OSError, ValueError, IndexError):
        return None
    finally:
        if writer is not None:
            writer.close()
