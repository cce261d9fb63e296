"""Streams that break: before their content an HTTP error, after it an event."""

import asyncio

import pytest

from tests.pipeline.conftest import DataPlane
from tests.pipeline.pieces import CONTENT, END, ERROR, START
from tests.pipeline.scripted import ANSWER, Conversation, ScriptedProvider
from tests.pipeline.test_endings import LIMITS, check_closed, dialects, stream
from tests.pipeline.wire import check_refusal


@dialects
async def test_an_error_before_the_first_content_is_a_proper_http_error(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    provider.streams(START[dialect], ERROR[dialect])
    ask = data_plane.chat if dialect == "openai" else data_plane.message

    answer = await ask(stream=True)

    check_refusal(answer, 502, "upstream_error", dialect)
    assert "sk-abc" not in answer.text
    await check_closed(data_plane, "settled")


@dialects
@pytest.mark.parametrize("ending", ["error", "error and more", "cut", "no end"])
async def test_a_stream_that_fails_after_content_ends_with_an_error_event(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str, ending: str
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    runs = [START[dialect], CONTENT[dialect]]
    if ending.startswith("error"):
        runs.append(ERROR[dialect] + (END[dialect] if ending == "error and more" else b""))
    provider.streams(*runs, then="cut" if ending == "cut" else "end")

    text = await stream(data_plane, dialect)

    assert "12345678" in text
    assert "sk-abc" not in text
    last = text.split("\n\n")[-2]
    assert ('"code":"upstream_error"' if dialect == "openai" else "event: error") in last
    assert "[DONE]" not in text
    assert "message_stop" not in text
    assert "finish_reason" not in text
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert (event.http_status, event.error_code) == (200, "upstream_error")
    assert event.charged_nanousd > 0


@dialects
async def test_a_whole_stream_in_one_piece_with_an_error_inside_fails(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    provider.streams(START[dialect] + CONTENT[dialect] + ERROR[dialect] + END[dialect])

    text = await stream(data_plane, dialect)

    assert "12345678" in text
    assert "error" in text.split("\n\n")[-2]
    assert "[DONE]" not in text
    assert "message_stop" not in text
    await check_closed(data_plane, "settled")


async def test_a_text_that_looks_like_the_end_is_not_the_end(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    fake = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":70}}\n\n'
    provider.streams(fake, CONTENT["openai"], END["openai"][:-14] + usage, END["openai"][-14:])

    await stream(data_plane, "openai")

    await check_closed(data_plane, "settled")
    assert data_plane.records.closes[0].usage.output_tokens == 70


async def test_a_revoked_key_ends_a_call_that_the_provider_has_not_answered_yet(
    data_plane: DataPlane, provider: ScriptedProvider
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    answers = asyncio.Event()

    async def late(conversation: Conversation) -> None:
        await answers.wait()
        await conversation.answer(200, ANSWER)

    provider.script = late
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
    calling = asyncio.create_task(data_plane.client.post("/v1/chat/completions", json=body))
    await data_plane.until(lambda: bool(provider.received), 1.0)

    assert await data_plane.pipeline.terminate(frozenset({("user", "another")})) == 0
    assert await data_plane.pipeline.terminate(frozenset({("user", "u1")})) == 1

    answer = await calling
    answers.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    await check_closed(data_plane, "settled")
    assert not await data_plane.pipeline.terminate(frozenset({("user", "u1")}))


@dialects
async def test_a_revoked_key_ends_the_answers_in_flight(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    provider.streams(START[dialect] + CONTENT[dialect], then="wait")
    path = "/v1/chat/completions" if dialect == "openai" else "/v1/messages"
    body = {"model": "m", "messages": [], "max_tokens": 20, "stream": True}
    async with data_plane.client.stream("POST", path, json=body) as answer:
        pieces = answer.aiter_text()
        text = await anext(pieces)

        await data_plane.pipeline.terminate(frozenset({("user", "u1")}))

        text += "".join([piece async for piece in pieces])
    assert "invalid_api_key" in text or "authentication_error" in text
    await data_plane.until(lambda: provider.left == 1, 1.0)
    await check_closed(data_plane, "settled")
    assert data_plane.pipeline.in_flight == 0
