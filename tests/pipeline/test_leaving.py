"""Callers that leave, at any moment."""

import asyncio
from typing import Any

import httpx
import pytest

from dataplane.domain.calls import Call
from dataplane.domain.credentials import parse_credentials
from dataplane.domain.refusals import Refusal
from dataplane.http.codecs import anthropic, openai
from dataplane.http.entry import send_answer
from dataplane.http.exchange import HttpAnswer
from tests.pipeline.conftest import KEY, DataPlane
from tests.pipeline.pieces import START
from tests.pipeline.scripted import ScriptedProvider
from tests.pipeline.test_bad_bodies import PATHS
from tests.pipeline.test_endings import LIMITS, check_closed, dialects


def body(model: str, is_stream: bool = True) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": model, "messages": messages, "stream": is_stream, "max_tokens": 1000}


@dialects
async def test_a_caller_that_leaves_mid_stream_pays_for_what_was_streamed(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(user=LIMITS)
    async with data_plane.client.stream(
        "POST", PATHS[dialect], json=body("mock-tokens-500-pace-10")
    ) as answer:
        seen = b""
        async for chunk in answer.aiter_raw():
            seen += chunk
            if seen.count(b"\n\n") >= 8:
                break

    await data_plane.until(lambda: bool(data_plane.records.closes), 1.0)
    await data_plane.until(lambda: data_plane.mock.stats.cancelled_streams == 1, 1.0)
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    assert (event.http_status, event.error_code) == (499, "")
    assert 5 <= event.usage.output_tokens <= data_plane.mock.stats.output_tokens + 1
    assert data_plane.mock.stats.open_streams == 0


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_caller_that_leaves_before_an_answer_stops_the_provider(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    data_plane.limited(user=LIMITS)
    asking = asyncio.create_task(
        data_plane.client.post(PATHS[dialect], json=body("mock-hang", is_stream))
    )
    await data_plane.until(lambda: data_plane.mock.stats.open_streams == 1)

    asking.cancel()

    await data_plane.until(lambda: data_plane.mock.stats.cancelled_streams == 1, 1.0)
    await data_plane.until(lambda: bool(data_plane.records.closes), 1.0)
    await check_closed(data_plane, "settled")
    [event] = data_plane.records.closes
    # The provider has read the prompt, and nobody knows what it has written: the prompt is charged.
    assert (event.http_status, event.usage.source) == (499, "estimated")
    assert event.usage.output_tokens == 0
    assert event.charged_nanousd == event.usage.input_total_tokens * 1_000 > 0


@dialects
async def test_a_caller_that_leaves_a_silent_stream_stops_the_provider(
    data_plane: DataPlane, provider: ScriptedProvider, dialect: str
) -> None:
    data_plane.calls(provider.url, user=LIMITS)
    provider.streams(START[dialect], then="wait")
    asking = asyncio.create_task(data_plane.client.post(PATHS[dialect], json=body("m")))
    await data_plane.until(lambda: len(provider.received) == 1)

    asking.cancel()

    await data_plane.until(lambda: provider.left == 1, 1.0)
    await data_plane.until(lambda: bool(data_plane.records.closes), 1.0)
    await check_closed(data_plane, "settled")


async def test_a_caller_that_leaves_during_its_own_body_costs_nothing(
    data_plane: DataPlane,
) -> None:
    data_plane.limited(user=LIMITS)
    host, port = data_plane.base_url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: 100\r\n\r\n{" % KEY.encode()
    )
    await writer.drain()

    writer.close()

    assert (await data_plane.chat(max_tokens=20)).status_code == 200
    assert len(data_plane.records.opens) == 1


@dialects
async def test_many_callers_leave_at_once_and_nothing_stays_held(
    data_plane: DataPlane, dialect: str
) -> None:
    data_plane.limited(user=LIMITS)

    async def leave(after_events: int) -> None:
        async with (
            httpx.AsyncClient(
                base_url=data_plane.base_url,
                headers=data_plane.client.headers,
                trust_env=False,
                verify=False,  # noqa: S501 - plain HTTP
            ) as client,
            client.stream("POST", PATHS[dialect], json=body("mock-tokens-200-pace-5")) as answer,
        ):
            seen = 0
            async for chunk in answer.aiter_raw():
                seen += chunk.count(b"\n\n")
                if seen >= after_events:
                    break

    await asyncio.gather(*(leave(count) for count in range(1, 21)))

    await data_plane.until(lambda: len(data_plane.records.closes) == 20, 2.0)
    await data_plane.until(lambda: data_plane.mock.stats.open_streams == 0, 1.0)
    assert await data_plane.held_nanousd() == 0
    assert await data_plane.counted("user_parallel") == 0
    charged = sum(event.charged_nanousd for event in data_plane.records.closes)
    assert await data_plane.counted("user_spend_per_month") == charged


def call(data_plane: DataPlane, dialect: str, is_stream: bool) -> Call:
    text = (
        b'{"model":"mock-tokens-20-slow-3","max_tokens":50,"stream":%b,"messages":[{"role":"user","content":"x"}]}'
        % (b"true" if is_stream else b"false")
    )
    codec = openai if dialect == "openai" else anthropic
    made: Call = codec.call_of(data_plane.pipeline.new_request_id(), text, {}, "")
    return made


@dialects
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("way_in", ["neither"])
async def test_a_call_that_is_cancelled_at_any_moment_ends_exactly_once(
    data_plane: DataPlane, dialect: str, is_stream: bool
) -> None:
    # It is called as a function: no way in has a part in it.
    data_plane.limited(user=LIMITS)
    credentials = parse_credentials({"x-api-key": KEY})

    async def use() -> None:
        async with data_plane.pipeline.exchange(
            call(data_plane, dialect, is_stream), credentials
        ) as answer:
            if answer.stream is not None:
                async for _ in answer.stream:
                    pass

    ends = {"cancelled": 0, "finished": 0}
    for ticks in range(45):
        task = asyncio.create_task(use())
        for _ in range(ticks):
            await asyncio.sleep(0.0003 if ticks > 12 else 0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        ends["cancelled" if isinstance(result, asyncio.CancelledError) else "finished"] += 1
        assert result is None or isinstance(result, asyncio.CancelledError | Refusal)
        records = data_plane.records
        assert len(records.opens) == len(records.closes)

    assert ends["cancelled"] > 5
    assert data_plane.pipeline.in_flight == 0
    assert await data_plane.held_nanousd() == 0
    await data_plane.until(lambda: data_plane.limiter.queued == 0)
    assert await data_plane.counted("user_parallel") == 0
    charged = sum(event.charged_nanousd for event in data_plane.records.closes)
    assert await data_plane.counted("user_spend_per_month") == charged
    ids = [event.request_id for event in data_plane.records.closes]
    assert len(set(ids)) == len(ids)


async def test_a_caller_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.http.entry.STALLED_SECONDS", 0.05)
    sent: list[str] = []

    async def stalled(message: Any) -> None:
        sent.append(message["type"])
        if len(sent) == 3:
            await asyncio.Event().wait()

    async def events() -> Any:
        while True:
            yield b"data: x\n\n"

    async with asyncio.timeout(3):
        with pytest.raises(TimeoutError):
            await send_answer(HttpAnswer(200, (), stream=events()), stalled)

    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


async def test_a_caller_that_takes_nothing_of_a_stream_gives_its_slot_back(
    data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch, way_in: str
) -> None:
    monkeypatch.setattr("dataplane.http.entry.STALLED_SECONDS", 0.2)
    data_plane.limited(user=LIMITS)
    host, port = data_plane.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    text = httpx.Request("POST", "http://x", json=body("mock-tokens-1000000")).content
    text = text.replace(b'"max_tokens":1000', b'"max_tokens":1000000')
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(text), text)
    )
    await reader.readuntil(b"\r\n\r\n")

    if way_in == "quart":
        # Only the way in that serves production gives up by itself; here the caller leaves.
        writer.close()
    await data_plane.until(lambda: bool(data_plane.records.closes), 5.0)

    assert await data_plane.held_nanousd() == 0
    await data_plane.until(lambda: data_plane.mock.stats.open_streams == 0, 1.0)
    writer.close()
