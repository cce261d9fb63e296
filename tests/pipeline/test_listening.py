import asyncio
import socket

import pytest

from dataplane.serving import listen


async def test_small_writes_are_sent_at_once() -> None:
    # Otherwise each answer waits some 40 ms for the client's system to acknowledge its head.
    accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = writer.get_extra_info("socket")
        accepted.set_result(bool(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    sock = listen("127.0.0.1", 0)
    async with await asyncio.start_server(serve, sock=sock):
        _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        async with asyncio.timeout(3):
            assert await accepted
        writer.close()


def test_a_port_that_is_taken_is_an_error() -> None:
    first = listen("127.0.0.1", 0)

    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])
    first.close()
