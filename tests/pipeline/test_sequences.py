"""What one call leaves behind for the next one."""

import asyncio

import httpx
import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.test_endings import dialects
from tests.pipeline.wire import check_refusal, head


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_sequential_caller_with_one_slot_always_finds_it_free(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    data_plane.limited(key=(LimitEntry("parallel", "none", 1), LimitEntry("spend", "day", 10**12)))
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    for _ in range(200):
        answer = await ask(stream=is_stream, max_tokens=20)
        assert answer.status_code == 200, answer.text

    events = data_plane.records.closes
    charged = sum(event.charged_nanousd for event in events)
    assert await data_plane.counted("key_spend_per_day") == charged
    assert len({event.request_id for event in events}) == 200


async def test_of_many_calls_at_once_exactly_the_limit_is_admitted(data_plane: DataPlane) -> None:
    data_plane.limited(user=(LimitEntry("requests", "day", 50),))

    answers = await asyncio.gather(*(data_plane.chat(max_tokens=20) for _ in range(120)))

    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (50, 70)
    assert len(data_plane.records.closes) == data_plane.mock.stats.requests == 50


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


async def test_a_stop_does_not_wait_for_a_caller_that_takes_nothing(
    data_plane: DataPlane,
) -> None:
    host, port = data_plane.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = b'{"model":"mock-tokens-1000000","max_tokens":1000000,"stream":true,"messages":[{"role":"user","content":"x"}]}'
    writer.write(head("/v1/chat/completions", b"content-length: %d" % len(body)) + body)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")

    data_plane.stop.set()

    # The harness serves with a drain of 5 seconds; the fixture waits for its end.
    async with asyncio.timeout(8):
        await data_plane.server
    await data_plane.until(lambda: bool(data_plane.records.closes))
    writer.close()


async def test_the_cost_of_a_stream_comes_as_a_comment_for_who_asks(
    data_plane: DataPlane,
) -> None:
    for ask in (data_plane.chat, data_plane.message):
        assert "tollkeeper-cost" not in (await ask(stream=True)).text
    data_plane.client.headers["x-tollkeeper-cost"] = "1"
    for ask in (data_plane.chat, data_plane.message):
        answer = await ask(text="four", stream=True)
        assert answer.text.endswith("\n\n: tollkeeper-cost-usd=0.000003\n\n")


async def test_an_answer_tells_where_it_came_from(data_plane: DataPlane) -> None:
    data_plane.client.headers["x-request-id"] = "mine-1"

    for answer in (await data_plane.chat(model="fast"), await data_plane.message(stream=True)):
        assert answer.headers["x-tollkeeper-provider"] == "mock"
        assert answer.headers["x-tollkeeper-model"] == "mock-echo"
        assert answer.headers["x-tollkeeper-attempts"] == "1"
        assert answer.headers["x-tollkeeper-config-revision"] == "7"
        assert int(answer.headers["x-tollkeeper-latency-ms"]) >= 0
        assert answer.headers["x-client-request-id"] == "mine-1"
        assert answer.headers["x-request-id"] == answer.headers["request-id"] != "mine-1"
    first, second = data_plane.records.closes
    assert (first.requested_model, first.model) == ("fast", "mock-echo")
    assert second.client_request_id == "mine-1"
    assert (second.ip, second.tier, second.config_revision) == ("127.0.0.1", "free", 7)
