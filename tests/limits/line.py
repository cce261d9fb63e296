"""The line between one limiter and its server, which a test may disturb."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65_536
# The words of the script's calls; what a limiter asks when it connects passes whatever the test says.
CALLS = (b"EVALSHA", b"EVAL")


@dataclass(slots=True)
class Line:
    """Passes on bytes both ways.

    Attributes:
        url: Where a limiter finds its server through this line.
        is_cut: Nobody gets through; what was connected is not.
        is_deaf: Calls of the script take effect, and their answers are lost.
        loses: So many calls of the script never arrive; their connections are closed if `hangs_up`,
            or else no more passes over them.
        lost: The calls that never arrived.
    """

    host: str
    port: int
    url: str = ""
    is_cut: bool = False
    is_deaf: bool = False
    loses: int = 0
    hangs_up: bool = False
    lost: list[bytes] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def deliver_late(self, password: str) -> None:
        """Let a call arrive that was lost, over a connection on which nobody listens any more."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        greeting = f"*2\r\n$4\r\nAUTH\r\n${len(password)}\r\n{password}\r\n".encode()
        writer.write(greeting + self.lost.pop(0))
        assert await reader.readline() == b"+OK\r\n"
        await reader.readline()
        writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what one client and the server say."""
        if self.is_cut:
            writer.close()
            return
        from_server, to_server = await asyncio.open_connection(self.host, self.port)
        self.writers |= {writer, to_server}
        heard = Heard()
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._ask(reader, to_server, writer, heard),
                self._answer(from_server, writer, heard),
            )

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        to_client: asyncio.StreamWriter,
        heard: "Heard",
    ) -> None:
        while (asked := await reader.read(CHUNK_BYTES)) and not self.is_cut:
            is_call = any(word in asked for word in CALLS)
            heard.was_called |= is_call
            if is_call and self.loses:
                self.loses -= 1
                self.lost.append(asked)
                if self.hangs_up:
                    break
                continue
            to_server.write(asked)
        to_server.close()
        to_client.close()

    async def _answer(
        self, reader: asyncio.StreamReader, to_client: asyncio.StreamWriter, heard: "Heard"
    ) -> None:
        while (answer := await reader.read(CHUNK_BYTES)) and not self.is_cut:
            if not (self.is_deaf and heard.was_called):
                to_client.write(answer)
        to_client.close()


@dataclass(slots=True)
class Heard:
    """Whether a connection has carried a call of the script."""

    was_called: bool = False


@asynccontextmanager
async def line_to(redis_url: str) -> AsyncIterator[Line]:
    """Open a line to a server that is reached by TCP."""
    parts = urlsplit(redis_url)
    assert parts.hostname is not None
    assert parts.port is not None
    line = Line(parts.hostname, parts.port)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    line.url = urlunsplit(parts._replace(netloc=f":{parts.password}@127.0.0.1:{port}"))
    try:
        yield line
    finally:
        server.close()
        for each in line.writers:
            each.close()
        await server.wait_closed()
