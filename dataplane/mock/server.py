"""The listening socket of the mock provider."""

import asyncio
from types import TracebackType
from typing import Self

from dataplane.mock.connection import Connection
from dataplane.mock.provider import Provider
from dataplane.mock.stats import Stats

# A load test opens its connections all at once.
_BACKLOG = 4096


class MockServer:
    """A running mock provider; close it, or use it as an asynchronous context."""

    def __init__(
        self, server: asyncio.Server, provider: Provider, connections: set[Connection]
    ) -> None:
        self._server = server
        self._provider = provider
        self._connections = connections
        host, self.port = server.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def stats(self) -> Stats:
        """The counters since the start or the last reset."""
        return self._provider.stats

    async def close(self) -> None:
        """Stop listening and drop every connection; answers under way are lost."""
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()
        # Aborted transports close their sockets in the next turn of the loop.
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def serve(host: str = "127.0.0.1", port: int = 0) -> MockServer:
    """Start a mock provider on the running event loop; port 0 takes a free one.

    Raises:
        OSError: The address cannot be bound.
    """
    provider = Provider()
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(provider, connections), host, port, backlog=_BACKLOG
    )
    return MockServer(server, provider, connections)
