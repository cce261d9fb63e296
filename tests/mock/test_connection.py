import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from dataplane.mock.connection import MAX_EARLY_BYTES
from dataplane.mock.server import MockServer
from tests.mock.dialects import PATHS, Client, until


class Wire:
    """A raw connection to the provider."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, model: str, *, stream: bool = False, extra: str = "") -> None:
        message = {"role": "user", "content": model}
        body = json.dumps({"model": model, "stream": stream, "messages": [message]})
        head = f"POST {PATHS['openai']} HTTP/1.1\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        self.writer.write((head + body).encode())

    async def body(self) -> bytes:
        """Return the next body, either JSON or a stream with its framing."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            if b"chunked" in head:
                return await self.reader.readuntil(b"\r\n0\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()


@pytest.fixture
async def wire(provider: MockServer) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    yield Wire(reader, writer)
    writer.close()
    await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


async def test_requests_that_are_sent_early_are_answered_in_their_order(wire: Wire) -> None:
    wire.send("one")
    wire.send("mock-tokens-3-pace-5", stream=True)
    wire.send("mock-slow-20")
    wire.send("mock-status-500-slow-5")
    wire.send("five", stream=True)

    assert b'"content":"one"' in await wire.body()
    assert (await wire.body()).count(b'"content":"') == 4
    assert b'"content":"mock-slow-20"' in await wire.body()
    assert b"status 500" in await wire.body()
    assert b'"content":"five"' in await wire.body()


async def test_a_client_that_sends_far_too_much_early_is_dropped(
    wire: Wire, provider: MockServer
) -> None:
    wire.send("mock-hang")
    wire.writer.write(b"x" * (MAX_EARLY_BYTES + 1))

    await until(lambda: provider.stats.cancelled_streams == 1, deadline_s=5)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_asks_for_it_is_disconnected_after_the_answer(
    wire: Wire, stream: bool
) -> None:
    wire.send("mock-slow-5", stream=stream, extra="connection: close\r\n")
    wire.send("never-answered")

    answer = await wire.rest()

    assert b"mock-slow-5" in answer
    assert b"never" not in answer


@pytest.mark.parametrize("path", PATHS.values())
async def test_bytes_that_are_no_request_are_answered_and_end_the_connection(
    wire: Wire, path: str
) -> None:
    wire.writer.write(f"POST {path} HTTP/1.1\r\ncontent-length: many\r\n\r\n".encode())

    head, body = (await wire.rest()).split(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert ("request_id" in json.loads(body)) == (path == PATHS["anthropic"])


async def test_a_client_that_ends_its_side_mid_stream_has_left(
    wire: Wire, provider: MockServer
) -> None:
    wire.send("mock-tokens-1000-pace-5", stream=True)
    await until(lambda: provider.stats.open_streams == 1)

    wire.writer.write_eof()

    await until(lambda: provider.stats.cancelled_streams == 1)


async def test_a_body_of_chunks_after_100_continue_is_taken(client: Client) -> None:
    async def body() -> AsyncIterator[bytes]:
        text = json.dumps(client.body("mock-echo", "hello there")).encode()
        for start in range(0, len(text), 7):
            yield text[start : start + 7]

    response = await client.http.post(client.path, content=body())

    assert response.status_code == 200
    assert "hello there" in response.text


async def test_a_client_that_waits_for_100_gets_it_and_then_its_answer(wire: Wire) -> None:
    body = b'{"model":"x","messages":[{"role":"user","content":"hi"}]}'
    head = f"POST {PATHS['openai']} HTTP/1.1\r\nexpect: 100-continue\r\n"
    wire.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())

    async with asyncio.timeout(5):
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.writer.write(body)

    assert b'"content":"hi"' in await wire.body()


async def test_many_streams_at_once_each_get_their_own_answer(http: httpx.AsyncClient) -> None:
    client = Client("anthropic", http)
    texts = [f"caller {number} says " + "é" * number for number in range(50)]

    outcomes = await asyncio.gather(
        *(client.ask("mock-pace-1", text, stream=True) for text in texts)
    )

    assert [outcome.text for outcome in outcomes] == texts
    assert (await client.stats())["open_streams"] == 0


async def test_a_server_that_closes_drops_what_is_under_way(provider: MockServer) -> None:
    async with httpx.AsyncClient(base_url=provider.url, trust_env=False) as http:
        call = asyncio.create_task(Client("openai", http).post("mock-hang"))
        await until(lambda: provider.stats.open_streams == 1)

        await provider.close()

        with pytest.raises(httpx.RemoteProtocolError):
            await call
    assert provider.stats.open_streams == 0
