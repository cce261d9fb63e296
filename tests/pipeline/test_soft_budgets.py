"""Soft budgets: reserved is what is expected, and a stream that needs more asks for it."""

import asyncio
import json

import pytest

from dataplane.domain.principals import LimitEntry
from dataplane.limits.reservation import Reservation
from tests.pipeline.conftest import DataPlane
from tests.pipeline.pieces import CONTENT, START
from tests.pipeline.scripted import Conversation, ScriptedProvider
from tests.pipeline.test_bad_bodies import PATHS

# The mock costs 1 USD in and 2 USD out per million tokens: 2,000 nano-USD for a token of output.
OUT_NANOUSD = 2_000
EXPECTED_TOKENS = 512
# Event by event, so that a chunk is an event.
TOO_LONG = "mock-tokens-1200-pace-1"


def budget(nanousd: int, *, is_hard: bool = False) -> tuple[LimitEntry, ...]:
    return (LimitEntry("spend", "month", nanousd, is_hard=is_hard),)


async def test_a_soft_budget_reserves_what_is_expected_and_sends_no_cap(
    data_plane: DataPlane,
) -> None:
    data_plane.limited(user=budget(10**9))

    async with data_plane.client.stream(
        "POST",
        "/v1/chat/completions",
        json={
            "model": "mock-tokens-20-pace-20",
            "stream": True,
            "messages": [{"role": "user", "content": "hello"}],
        },
    ) as response:
        held = await data_plane.held_nanousd()
        await response.aread()

    assert EXPECTED_TOKENS * OUT_NANOUSD <= held < 2 * EXPECTED_TOKENS * OUT_NANOUSD
    [closed] = data_plane.records.closes
    assert closed.output_cap_tokens == 0
    assert closed.reserved_nanousd == held


async def test_a_long_stream_tops_up_what_it_reserved(data_plane: DataPlane) -> None:
    data_plane.limited(user=budget(10**9))

    text = (await data_plane.chat(f"mock-tokens-{3 * EXPECTED_TOKENS}", stream=True)).text

    assert '"finish_reason":"stop"' in text
    await data_plane.until(lambda: data_plane.limiter.queued == 0)
    [closed] = data_plane.records.closes
    assert closed.usage.output_tokens == 3 * EXPECTED_TOKENS
    assert await data_plane.counted("user_spend_per_month") == closed.charged_nanousd
    assert await data_plane.held_nanousd() == 0


async def test_a_stream_that_the_budget_has_no_more_room_for_ends_as_if_it_were_too_long(
    data_plane: DataPlane,
) -> None:
    capacity = (EXPECTED_TOKENS + 300) * OUT_NANOUSD
    data_plane.limited(user=budget(capacity))

    text = (await data_plane.chat(TOO_LONG, stream=True)).text

    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["x-tollkeeper-stop"] == "budget"
    assert last["id"] == json.loads(events[0])["id"]
    [closed] = data_plane.records.closes
    assert capacity * 0.9 < closed.charged_nanousd < capacity * 1.02
    assert (closed.http_status, closed.error_code) == (200, "insufficient_quota")
    await data_plane.until(lambda: data_plane.limiter.queued == 0)
    assert await data_plane.held_nanousd() == 0


async def test_a_stream_of_messages_ends_in_its_own_dialect(data_plane: DataPlane) -> None:
    capacity = (EXPECTED_TOKENS + 300) * OUT_NANOUSD
    data_plane.limited(user=budget(capacity))

    text = (await data_plane.message(TOO_LONG, stream=True, max_tokens=4_000)).text

    assert text.index('"content_block_stop"') < text.index('"max_tokens"')
    assert '"x-tollkeeper-stop":"budget"' in text
    assert text.rstrip().endswith('{"type":"message_stop"}')
    assert text.count("message_stop") == 2


# Much more than is reserved, the reason why it ended, and what follows that.
LONG = b"x" * 16_000
ENDED = {
    "openai": (
        b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' % LONG,
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3000}}\n\n'
        b"data: [DONE]\n\n",
    ),
    "anthropic": (
        b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"%b"}}\n\n'
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}\n\n' % LONG,
        b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":3000}}\n\n'
        b'data: {"type":"message_stop"}\n\n',
    ),
}


@pytest.mark.parametrize("dialect", ENDED)
async def test_an_answer_that_has_ended_is_not_cut_and_its_usage_is_waited_for(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    data_plane.calls(provider.url, user=budget(1_000 * OUT_NANOUSD))
    has_begun, has_end = asyncio.Event(), asyncio.Event()
    answer, usage = ENDED[dialect]

    async def script(conversation: Conversation) -> None:
        await conversation.begin_stream()
        await conversation.event(START[dialect] + CONTENT[dialect])
        await has_begun.wait()
        await conversation.event(answer)
        await has_end.wait()
        await conversation.event(usage)
        await conversation.end_stream()

    provider.script = script
    body = {"model": "m", "stream": True, "max_tokens": 10_000, "messages": [{"content": "x"}]}
    seen = b""
    async with data_plane.client.stream("POST", PATHS[dialect], json=body) as response:
        async for chunk in response.aiter_raw():
            seen += chunk
            has_begun.set()
            if b"stop" in seen or b"end_turn" in seen:
                has_end.set()

    assert b"x-tollkeeper-stop" not in seen
    assert seen.count(b"[DONE]") + seen.count(b"message_stop") == 1
    [closed] = data_plane.records.closes
    assert (closed.usage.output_tokens, closed.usage.source) == (3_000, "reported")
    assert (closed.http_status, closed.error_code) == (200, "")


async def test_a_cut_ends_each_of_several_choices(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=budget(2_000 * OUT_NANOUSD))
    has_begun = asyncio.Event()
    event = b'data: {"id":"c1","choices":[{"index":%d,"delta":{"content":"%b"}}]}\n\n'

    async def script(conversation: Conversation) -> None:
        await conversation.begin_stream()
        await conversation.event(event % (0, b"hello"))
        await has_begun.wait()
        await conversation.event(event % (0, LONG) + event % (1, LONG))
        await conversation.until_left()

    provider.script = script
    body = {"model": "m", "stream": True, "n": 2, "messages": [{"content": "x"}]}
    seen = b""
    async with data_plane.client.stream("POST", PATHS["openai"], json=body) as response:
        async for chunk in response.aiter_raw():
            seen += chunk
            has_begun.set()

    events = [json.loads(line[6:]) for line in seen.splitlines() if line.startswith(b"data: {")]
    cuts = [each for each in events if each.get("x-tollkeeper-stop") == "budget"]
    assert [
        (choice["index"], choice["finish_reason"]) for each in cuts for choice in each["choices"]
    ] == [(0, "length"), (1, "length")]
    assert seen.endswith(b"data: [DONE]\n\n")


async def test_a_budget_that_is_nearly_used_up_is_asked_few_times(
    data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacity = (EXPECTED_TOKENS + 300) * OUT_NANOUSD
    data_plane.limited(user=budget(capacity))
    asked: list[int] = []
    extend = Reservation.extend

    async def counted(self: Reservation, expected_nanousd: int) -> bool:
        asked.append(expected_nanousd)
        return await extend(self, expected_nanousd)

    monkeypatch.setattr(Reservation, "extend", counted)

    text = (await data_plane.chat(TOO_LONG, stream=True)).text

    assert '"x-tollkeeper-stop":"budget"' in text
    assert 0 < len(asked) <= 20
    [closed] = data_plane.records.closes
    assert closed.charged_nanousd > capacity * 0.95


async def test_a_caller_s_own_cap_is_never_topped_up_beyond(data_plane: DataPlane) -> None:
    cap = 2 * EXPECTED_TOKENS
    data_plane.limited(user=budget((cap + 100) * OUT_NANOUSD))

    text = (await data_plane.chat(f"mock-tokens-{cap}", stream=True, max_tokens=cap)).text

    assert "x-tollkeeper-stop" not in text


async def test_beside_a_hard_budget_the_soft_one_still_reserves_less(
    data_plane: DataPlane,
) -> None:
    data_plane.limited(
        user=budget(10**10, is_hard=True), organization=budget((EXPECTED_TOKENS + 100) * 2_000)
    )

    response = await data_plane.chat("mock-tokens-4")

    assert response.status_code == 200
    [closed] = data_plane.records.closes
    assert closed.output_cap_tokens == 4096
    layers = closed.layers
    soft = layers.names.index("organization_spend_per_month")
    hard = layers.names.index("user_spend_per_month")
    assert layers.softs == (soft,)
    assert layers.reserved[hard] > 4096 * OUT_NANOUSD > layers.reserved[soft]


@pytest.mark.parametrize(
    ("path", "extra", "named"),
    [
        ("/v1/chat/completions", {"web_search_options": {}}, "web_search_options"),
        (
            "/v1/messages",
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "web_search_20250305",
        ),
        ("/v1/messages", {"mcp_servers": [{"type": "url", "url": "https://x"}]}, "mcp_servers"),
    ],
)
async def test_a_hard_budget_refuses_tools_that_a_provider_bills_without_a_ceiling(
    data_plane: DataPlane, path: str, extra: dict[str, object], named: str
) -> None:
    body = {
        "model": "mock-echo",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "hello"}],
        **extra,
    }
    data_plane.limited(user=budget(10**9, is_hard=True))
    refused = await data_plane.client.post(path, json=body)
    data_plane.limited(user=budget(10**9))
    served = await data_plane.client.post(path, json=body)

    assert refused.status_code == 400
    assert refused.headers["x-tollkeeper-error"] == "unsupported_parameter"
    assert named in refused.text
    assert served.status_code == 200
