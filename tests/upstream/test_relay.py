import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from dataplane.domain.calls import Dialect
from dataplane.domain.refusals import Refusal
from dataplane.upstream.relay import Relay
from dataplane.upstream.translators.openai_openai import OpenAIToOpenAI
from tests.upstream.calls import call

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class Provider:
    """A stream that a test feeds."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.told: list[str] = []

    async def chunks(self) -> AsyncIterator[bytes]:
        while (item := await self.queue.get()) != b"":
            if isinstance(item, Exception):
                raise item
            yield item

    def relay(self, silence_seconds: float = 5.0) -> Relay:
        translator = OpenAIToOpenAI()
        return Relay(
            self.chunks(),
            translator.stream_reader(call(Dialect.OPENAI)),
            translator.ping,
            on_complete=lambda: self.told.append("complete"),
            on_content=lambda: self.told.append("content"),
            silence_seconds=silence_seconds,
        )

    def send(self, *items: bytes | Exception) -> None:
        for item in items:
            self.queue.put_nowait(item)


async def test_the_head_waits_for_content_and_has_everything_so_far() -> None:
    provider = Provider()
    relay = provider.relay()
    provider.send(ROLE, TEXT, TEXT, DONE, b"")

    assert await relay.head() == ROLE + TEXT
    assert provider.told == ["content"]
    assert [chunk async for chunk in relay.rest()] == [TEXT, DONE]
    assert provider.told == ["content", "complete"]
    await relay.aclose()


async def test_after_a_long_silence_pings_keep_the_caller() -> None:
    provider = Provider()
    relay = provider.relay(silence_seconds=0.01)
    provider.send(ROLE)

    assert await relay.head() == ROLE
    rest = relay.rest()
    assert [await anext(rest), await anext(rest)] == [PING, PING]
    provider.send(TEXT, DONE, b"")
    left = [chunk async for chunk in rest if chunk != PING]
    assert left == [TEXT, DONE]
    assert provider.told == ["content", "complete"]
    await relay.aclose()


async def test_a_relay_that_is_given_up_in_its_silence_leaves_no_task() -> None:
    provider = Provider()
    relay = provider.relay(silence_seconds=0.01)
    assert await relay.head() == b""

    await relay.aclose()

    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    "items",
    [
        (b"",),
        (ROLE, b""),
        (httpx.ReadError("cut"),),
        (ROLE, httpx.ReadTimeout("silent")),
        (b'data: {"error":{"message":"x"}}\n\n', b""),
    ],
)
async def test_a_failure_before_content_is_raised_by_the_head(
    items: tuple[bytes | Exception, ...],
) -> None:
    provider = Provider()
    relay = provider.relay()
    provider.send(*items)

    with pytest.raises(Refusal):
        await relay.head()
    assert provider.told == []
    await relay.aclose()


@pytest.mark.parametrize("silence_seconds", [5.0, 0.01])
@pytest.mark.parametrize(
    "items", [(b"",), (httpx.ReadError("cut"),), (b'data: {"error":"x"}\n\n', DONE, b"")]
)
async def test_a_failure_after_content_is_raised_by_the_rest(
    items: tuple[bytes | Exception, ...], silence_seconds: float
) -> None:
    provider = Provider()
    relay = provider.relay(silence_seconds)
    provider.send(TEXT, *items)
    assert await relay.head() == TEXT

    with pytest.raises(Refusal):
        assert [chunk async for chunk in relay.rest()] == []
    assert provider.told == ["content"]
    await relay.aclose()


async def test_the_end_is_told_before_its_bytes_are_handed_out() -> None:
    provider = Provider()
    relay = provider.relay()
    provider.send(TEXT + DONE, b"")

    await relay.head()

    assert sorted(provider.told) == ["complete", "content"]
    await relay.aclose()
