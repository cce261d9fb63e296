"""The providers' own client libraries are the judges of the wire format."""

from collections.abc import AsyncIterator

import anthropic
import openai
import pytest

from dataplane.mock.server import MockServer
from tests.mock.dialects import until

TEXT = "grüße, 世界 🎉"
TOKENS = -(-len(TEXT.encode()) // 4)


@pytest.fixture
async def openai_sdk(provider: MockServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key="any",
        base_url=f"{provider.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        max_retries=0,
    ) as sdk:
        yield sdk


@pytest.fixture
async def anthropic_sdk(provider: MockServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key="any",
        base_url=provider.url,
        http_client=anthropic.DefaultAsyncHttpxClient(trust_env=False),
        max_retries=0,
    ) as sdk:
        yield sdk


async def test_openai_completes(openai_sdk: openai.AsyncOpenAI) -> None:
    completion = await openai_sdk.chat.completions.create(
        model="mock-echo", messages=[{"role": "user", "content": TEXT}]
    )

    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == TOKENS


async def test_openai_streams(openai_sdk: openai.AsyncOpenAI) -> None:
    stream = await openai_sdk.chat.completions.create(
        model="mock-echo",
        messages=[{"role": "user", "content": TEXT}],
        stream=True,
        stream_options={"include_usage": True},
    )

    chunks = [chunk async for chunk in stream]

    contents = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(contents) == TEXT
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (TOKENS, TOKENS)


async def test_openai_sees_the_error_that_it_was_promised(openai_sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as refusal:
        await openai_sdk.chat.completions.create(
            model="mock-status-429", messages=[{"role": "user", "content": "a"}]
        )

    assert refusal.value.code == "rate_limit_exceeded"
    assert refusal.value.response.headers["retry-after"] == "1"


async def test_openai_lists_models(openai_sdk: openai.AsyncOpenAI) -> None:
    assert "mock-echo" in [model.id async for model in openai_sdk.models.list()]


async def test_openai_that_stops_reading_cancels_the_stream(
    openai_sdk: openai.AsyncOpenAI, provider: MockServer
) -> None:
    stream = await openai_sdk.chat.completions.create(
        model="mock-tokens-1000-pace-5",
        messages=[{"role": "user", "content": "a"}],
        stream=True,
    )
    await anext(aiter(stream))

    await stream.close()

    await until(lambda: provider.stats.cancelled_streams == 1)


async def test_anthropic_completes(anthropic_sdk: anthropic.AsyncAnthropic) -> None:
    message = await anthropic_sdk.messages.create(
        model="mock-echo", max_tokens=100, messages=[{"role": "user", "content": TEXT}]
    )

    assert [block.text for block in message.content if block.type == "text"] == [TEXT]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (TOKENS, TOKENS)


async def test_anthropic_streams(anthropic_sdk: anthropic.AsyncAnthropic) -> None:
    async with anthropic_sdk.messages.stream(
        model="mock-echo", max_tokens=3, messages=[{"role": "user", "content": TEXT}]
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()

    assert TEXT.startswith(text)
    assert message.stop_reason == "max_tokens"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (TOKENS, 3)


async def test_anthropic_sees_the_error_that_it_was_promised(
    anthropic_sdk: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.APIStatusError) as refusal:
        await anthropic_sdk.messages.create(
            model="mock-status-529", max_tokens=1, messages=[{"role": "user", "content": "a"}]
        )

    assert refusal.value.status_code == 529
    assert refusal.value.response.json()["error"]["type"] == "overloaded_error"


async def test_anthropic_lists_models(anthropic_sdk: anthropic.AsyncAnthropic) -> None:
    assert "mock-echo" in [model.id async for model in anthropic_sdk.models.list()]
