import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from dataplane.upstream.addresses import AllowedAddresses
from dataplane.upstream.transport import AiohttpTransport
from tests.pipeline.scripted import Conversation, ScriptedProvider


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as scripted:
        yield scripted


@pytest_asyncio.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    transport = AiohttpTransport(AllowedAddresses(["127.0.0.0/8"]))
    yield transport
    await transport.aclose()


async def post(
    transport: AiohttpTransport, url: str, content: bytes = b"{}"
) -> tuple[httpx.Response, bytes]:
    response = await transport.handle_async_request(httpx.Request("POST", url, content=content))
    assert isinstance(response.stream, httpx.AsyncByteStream)
    body = b"".join([chunk async for chunk in response.stream])
    await response.stream.aclose()
    return response, body


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "127.1", "2130706433", "0x7f000001",
     "0", "169.254.169.254"],
)  # fmt: skip
async def test_no_way_of_writing_an_inner_address_gets_through(
    provider: ScriptedProvider, host: str
) -> None:
    port = provider.url.rsplit(":", 1)[1]
    strict = AiohttpTransport(AllowedAddresses())

    with pytest.raises(httpx.ConnectError):
        await post(strict, f"http://{host}:{port}/v1")

    await strict.aclose()
    assert provider.received == []


async def test_a_redirect_is_an_answer_and_not_followed(
    provider: ScriptedProvider, transport: AiohttpTransport
) -> None:
    provider.answers(307, b"", f"location: {provider.url}/elsewhere")

    response, _ = await post(transport, f"{provider.url}/v1")

    assert (response.status_code, len(provider.received)) == (307, 1)


async def test_cookies_are_not_kept(
    provider: ScriptedProvider, transport: AiohttpTransport
) -> None:
    provider.answers(200, b"{}", "set-cookie: a=1; path=/")

    for _ in range(2):
        await post(transport, f"{provider.url}/v1")

    assert ["cookie" in each.headers for each in provider.received] == [False, False]


async def test_proxies_of_the_environment_are_not_used(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    transport = AiohttpTransport(AllowedAddresses(["127.0.0.0/8"]))

    response, _ = await post(transport, f"{provider.url}/v1")

    await transport.aclose()
    assert response.status_code == 200


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_a_body_of_any_size_arrives_whole(
    provider: ScriptedProvider, transport: AiohttpTransport, size: int
) -> None:
    await post(transport, f"{provider.url}/v1", b"x" * size)

    [request] = provider.received
    assert (len(request.body), request.headers["content-length"]) == (size, str(size))
    assert "transfer-encoding" not in request.headers


async def test_a_connection_is_used_again(
    provider: ScriptedProvider, transport: AiohttpTransport
) -> None:
    connections = set()

    async def script(conversation: Conversation) -> None:
        connections.add(conversation.peer)
        await conversation.answer(200, b"{}")

    provider.script = script
    for _ in range(2):
        _, body = await post(transport, f"{provider.url}/v1")
        assert body == b"{}"
    assert len(connections) == 1


async def test_a_provider_that_hangs_up_may_have_read_the_request(
    provider: ScriptedProvider, transport: AiohttpTransport
) -> None:
    async def script(conversation: Conversation) -> None:
        pass

    provider.script = script
    with pytest.raises(httpx.ReadError):
        await post(transport, f"{provider.url}/v1")
    assert len(provider.received) == 1


async def test_cancelling_a_call_closes_its_connection(
    provider: ScriptedProvider, transport: AiohttpTransport
) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.until_left()
        provider.left += 1

    provider.script = script
    calling = asyncio.create_task(post(transport, f"{provider.url}/v1"))
    async with asyncio.timeout(3):
        while not provider.received:
            await asyncio.sleep(0.005)
        calling.cancel()
        while not provider.left:
            await asyncio.sleep(0.005)
    with pytest.raises(asyncio.CancelledError):
        await calling
