"""The network between the planes, as bad as a test wants it: cuts after so many bytes, stands still, goes away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_READ_BYTES: Final = 4096


class Proxy:
    """Passes TCP connections on to a target that may change; everything happens on one event loop."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self.cut_after_bytes: int | None = None
        """Cut every connection once so many bytes more have come from the target; counts down."""
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where clients connect."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def point_at(self, address: str | None) -> None:
        """Pass connections on to an address from now on; None refuses them."""
        if address is None:
            self.target = None
        else:
            host, _, port = address.rpartition(":")
            self.target = host, int(port)

    def stand_still(self) -> None:
        """Pass nothing on until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass everything on again."""
        self._flows.set()

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.target is None:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(*self.target)
            self._writers.add(upstream_writer)
            pumps = [
                asyncio.create_task(self._pump(reader, upstream_writer, counts=False)),
                asyncio.create_task(self._pump(upstream_reader, writer, counts=True)),
            ]
            self._tasks.update(pumps)
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._tasks.difference_update(pumps)
            self._writers.discard(upstream_writer)
            upstream_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                await self._flows.wait()
                if counts and self.cut_after_bytes is not None:
                    data = data[: self.cut_after_bytes]
                    self.cut_after_bytes -= len(data)
                writer.write(data)
                await writer.drain()
                if counts and self.cut_after_bytes == 0:
                    self.cut_after_bytes = None
                    return

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.flow()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxying(address: str | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy in front of an address."""
    proxy = Proxy()
    await proxy.start()
    proxy.point_at(address)
    try:
        yield proxy
    finally:
        await proxy.stop()
