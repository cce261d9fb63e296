"""However a call ends: one record, nothing held, and the caller knows."""

from typing import Any

import pytest

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import DataPlane
from tests.pipeline.scripted import Conversation, ScriptedProvider
from tests.pipeline.wire import check_refusal

LIMITS = (
    LimitEntry("requests", "day", 1000),
    LimitEntry("tokens", "day", 10**9),
    LimitEntry("spend", "month", 10**12),
    LimitEntry("parallel", "none", 100),
)
dialects = pytest.mark.parametrize("dialect", ["openai", "anthropic"])


async def stream(data_plane: DataPlane, dialect: str, **fields: Any) -> str:
    ask = data_plane.chat if dialect == "openai" else data_plane.message
    answer = await ask(stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


async def check_closed(data_plane: DataPlane, state: str, requests: int = 1) -> None:
    [event] = data_plane.records.closes
    [opened] = data_plane.records.opens
    assert opened.request_id == event.request_id
    assert opened.state == "abandoned"
    assert opened.charged_nanousd == opened.reserved_nanousd > 0
    assert event.state == state
    assert await data_plane.held_nanousd() == 0
    assert await data_plane.counted("user_requests_per_day") == requests
    assert await data_plane.counted("user_parallel") == 0
    assert await data_plane.counted("user_tokens_per_day") == event.usage.total_tokens
    assert await data_plane.counted("user_spend_per_month") == event.charged_nanousd


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_is_settled_at_what_the_provider_reports(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    data_plane.limited(user=LIMITS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask("mock-tokens-30", stream=is_stream, max_tokens=50)

    assert answer.status_code == 200
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert (event.usage.output_tokens, event.usage.source) == (30, "reported")
    assert event.charged_nanousd == 2 * 1_000 + 30 * 2_000
    stats = data_plane.mock.stats
    assert (stats.input_tokens, stats.output_tokens) == (2, 30)


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_provider_that_cannot_be_reached_gives_everything_back(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    gone = ScriptedProvider()
    async with gone:
        data_plane.calls(gone.url, user=LIMITS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask(stream=is_stream)

    check_refusal(answer, 502, "upstream_error", dialect)
    await check_closed(data_plane, "released", requests=0)


@dialects
async def test_an_address_that_is_not_allowed_gives_everything_back(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.calls("http://169.254.169.254", user=LIMITS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    check_refusal(await ask(), 502, "upstream_error", dialect)
    await check_closed(data_plane, "released", requests=0)


@dialects
@pytest.mark.parametrize("model", ["mock-cut-6", "mock-cut-6-no-usage"])
async def test_a_provider_that_cuts_is_charged_for_what_came(
    data_plane: DataPlane, dialect: str, model: str
) -> None:
    data_plane.limited(user=LIMITS)

    text = await stream(data_plane, dialect, model=model, text="many words of text to cut")

    assert "upstream_error" in text or "event: error" in text
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert event.usage.source in ("estimated", "partial")
    assert event.charged_nanousd > 0


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_without_usage_is_estimated(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    data_plane.limited(user=LIMITS)
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask("mock-no-usage-tokens-30", stream=is_stream, max_tokens=50)

    assert answer.status_code == 200
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert event.usage.source == "estimated"
    assert event.usage.output_tokens == 30


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_caller_may_wait_less_long(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    data_plane.limited(user=LIMITS)
    data_plane.client.headers["x-tollkeeper-timeout"] = "0.1"
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask("mock-hang", stream=is_stream)

    check_refusal(answer, 504, "upstream_timeout", dialect)
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert (event.charged_nanousd, event.usage.source) == (0, "unknown")
    await data_plane.until(lambda: data_plane.mock.stats.open_streams == 0, 1.0)


@dialects
async def test_an_answer_that_is_cut_is_an_error(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.answer(200, b"{", "content-length: 100")

    data_plane.calls(provider.url, user=LIMITS)
    provider.script = script
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    check_refusal(await ask(), 502, "upstream_error", dialect)
    await check_closed(data_plane, "settled")


async def test_nothing_is_admitted_that_could_not_be_recorded(data_plane: DataPlane) -> None:
    data_plane.limited(user=LIMITS)
    data_plane.records.is_full = True

    check_refusal(await data_plane.chat(), 503, "usage_backlog", "openai")
    assert (data_plane.records.opens, await data_plane.counted("user_requests_per_day")) == ([], 0)


async def test_a_data_plane_without_a_configuration_says_so(data_plane: DataPlane) -> None:
    data_plane.configuration.snapshot = None

    for ask in (data_plane.chat, data_plane.message):
        assert (await ask()).status_code == 503
    answer = await data_plane.client.get("/v1/models")
    check_refusal(answer, 503, "configuration_unavailable", "openai")
