"""What one call leaves behind for the next one."""

import asyncio

import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.test_endings import dialects


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
