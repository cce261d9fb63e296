"""What a stop does to answers in flight."""

import asyncio

import httpx
import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.test_endings import dialects
from tests.pipeline.wire import check_refusal, head


async def test_a_stop_lets_streams_finish_and_takes_nothing_new(data_plane: DataPlane) -> None:
    data_plane.limited(user=(LimitEntry("parallel", "none", 50),))
    body = {
        "model": "mock-tokens-30-pace-20",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "max_tokens": 100,
    }
    paths = ["/v1/chat/completions", "/v1/messages"]

    async def read(path: str) -> str:
        answer = await data_plane.client.post(path, json=body)
        assert answer.status_code == 200
        return answer.text

    await data_plane.chat()  # a connection that stays open and idle
    streams = [asyncio.create_task(read(paths[index % 2])) for index in range(20)]
    await data_plane.until(lambda: data_plane.pipeline.in_flight == 20)
    data_plane.pipeline.is_draining = True
    for path in paths:
        refused = await data_plane.client.post(path, json=body)
        dialect = "openai" if "chat" in path else "anthropic"
        check_refusal(refused, 503, "draining", dialect)
    ready = await data_plane.client.get("/health/ready")
    assert (ready.status_code, ready.json()["draining"]) == (503, True)

    data_plane.stop.set()

    texts = await asyncio.wait_for(asyncio.gather(*streams), 5)
    assert sum("[DONE]" in text for text in texts) == 10
    assert sum("message_stop" in text for text in texts) == 10
    assert len(data_plane.records.closes) == 21
    assert {event.usage.source for event in data_plane.records.closes} == {"reported"}
    assert await data_plane.counted("user_parallel") == 0
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(trust_env=False) as fresh:
            await fresh.get(data_plane.base_url)


@pytest.mark.parametrize("drain_seconds", [0.3])
async def test_a_stop_does_not_wait_for_a_caller_that_takes_nothing(
    data_plane: DataPlane,
) -> None:
    host, port = data_plane.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = (
        b'{"model":"mock-tokens-1000000","max_tokens":1000000,"stream":true,'
        b'"messages":[{"role":"user","content":"x"}]}'
    )
    writer.write(head("/v1/chat/completions", b"content-length: %d" % len(body)) + body)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")

    data_plane.stop.set()

    async with asyncio.timeout(2):
        await data_plane.server
    [event] = data_plane.records.closes
    assert (event.state, event.http_status) == ("settled", 499)
    assert await data_plane.held_nanousd() == 0
    await data_plane.until(lambda: data_plane.mock.stats.open_streams == 0, 1.0)
    writer.close()


@dialects
@pytest.mark.parametrize("drain_seconds", [0.3])
async def test_a_stream_that_outlasts_the_drain_is_cut_and_settled(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(user=(LimitEntry("spend", "day", 10**12),))
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    asking = asyncio.create_task(ask("mock-tokens-1000-pace-20", stream=True, max_tokens=1000))
    await data_plane.until(lambda: data_plane.pipeline.in_flight == 1)

    data_plane.stop.set()

    async with asyncio.timeout(2):
        await data_plane.server
    with pytest.raises(httpx.RemoteProtocolError):
        await asking
    [event] = data_plane.records.closes
    assert (event.state, event.http_status) == ("settled", 499)
    assert event.charged_nanousd > 0
    assert await data_plane.held_nanousd() == 0


async def test_a_stop_closes_idle_connections_at_once(data_plane: DataPlane) -> None:
    assert (await data_plane.chat()).status_code == 200

    data_plane.stop.set()

    async with asyncio.timeout(1):
        await data_plane.server
