"""The official clients, as their users call them."""

from collections.abc import AsyncIterator
from dataclasses import replace

import anthropic
import openai
import pytest
import pytest_asyncio
from msgspec.structs import replace as changed

from dataplane.domain.principals import LimitEntry
from tests.pipeline.conftest import KEY, DataPlane


@pytest_asyncio.fixture
async def gpt(data_plane: DataPlane) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=KEY,
        base_url=f"{data_plane.base_url}/v1",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


@pytest_asyncio.fixture
async def claude(data_plane: DataPlane) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=KEY,
        base_url=data_plane.base_url,
        max_retries=0,
        http_client=anthropic.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


async def ask_gpt(client: openai.AsyncOpenAI, model: str = "mock-echo") -> str:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "some words"}], max_tokens=50
    )
    return answer.choices[0].message.content or ""


async def ask_claude(client: anthropic.AsyncAnthropic, model: str = "mock-echo") -> str:
    answer = await client.messages.create(
        model=model, messages=[{"role": "user", "content": "some words"}], max_tokens=50
    )
    [block] = answer.content
    assert block.type == "text"
    return block.text


async def test_the_openai_sdk_completes_and_streams(
    data_plane: DataPlane, gpt: openai.AsyncOpenAI
) -> None:
    assert await ask_gpt(gpt) == "some words"
    stream = await gpt.chat.completions.create(
        model="mock-echo", messages=[{"role": "user", "content": "some words"}], stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "some words"
    with_usage = await gpt.chat.completions.create(
        model="mock-echo",
        messages=[{"role": "user", "content": "some words"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert [chunk.usage.completion_tokens async for chunk in with_usage if chunk.usage] == [3]
    assert [model.id async for model in gpt.models.list()] == [
        "fast",
        "mock-echo",
        "mock-tokens-64",
    ]
    assert len(data_plane.records.closes) == 3


async def test_the_anthropic_sdk_completes_and_streams(
    data_plane: DataPlane, claude: anthropic.AsyncAnthropic
) -> None:
    assert await ask_claude(claude) == "some words"
    async with claude.messages.stream(
        model="mock-echo", messages=[{"role": "user", "content": "some words"}], max_tokens=50
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "some words"
    assert final.usage.output_tokens == 3
    assert len(data_plane.records.closes) == 2


@pytest.mark.parametrize(
    ("change", "model", "of_openai", "of_anthropic"),
    [
        ("limit", "mock-echo", openai.RateLimitError, anthropic.RateLimitError),
        ("budget", "mock-echo", openai.RateLimitError, anthropic.APIStatusError),
        ("no keys", "mock-echo", openai.AuthenticationError, anthropic.AuthenticationError),
        ("suspended", "mock-echo", openai.PermissionDeniedError, anthropic.PermissionDeniedError),
        ("small", "mock-echo", openai.BadRequestError, anthropic.BadRequestError),
        ("", "mock-status-404", openai.NotFoundError, anthropic.NotFoundError),
        ("", "mock-status-400", openai.BadRequestError, anthropic.BadRequestError),
        ("", "mock-status-429", openai.RateLimitError, anthropic.RateLimitError),
        ("", "mock-status-401", openai.InternalServerError, anthropic.InternalServerError),
        ("", "mock-status-500", openai.InternalServerError, anthropic.InternalServerError),
    ],
)
async def test_refusals_are_the_sdks_own_errors(
    data_plane: DataPlane,
    gpt: openai.AsyncOpenAI,
    claude: anthropic.AsyncAnthropic,
    change: str,
    model: str,
    of_openai: type[openai.APIStatusError],
    of_anthropic: type[anthropic.APIStatusError],
) -> None:
    change_configuration(data_plane, change)

    with pytest.raises(of_openai) as first:
        await ask_gpt(gpt, model)
    with pytest.raises(of_anthropic) as second:
        await ask_claude(claude, model)

    assert first.value.request_id
    assert second.value.request_id
    if change == "budget":
        assert (first.value.status_code, second.value.status_code) == (429, 402)


def change_configuration(data_plane: DataPlane, change: str) -> None:
    snapshot = data_plane.configuration.get()
    [(digest, key)] = snapshot.keys_by_sha256.items()
    if change == "limit":
        data_plane.limited(user=(LimitEntry("requests", "day", 0),))
    elif change == "budget":
        data_plane.limited(user=(LimitEntry("spend", "month", 0),))
    elif change == "small":
        data_plane.limited(user=(LimitEntry("tokens", "day", 5),))
    elif change == "no keys":
        data_plane.use(replace(snapshot, keys_by_sha256={}))
    elif change == "suspended":
        user = changed(key.principal.user, is_suspended=True)
        suspended = changed(key, principal=changed(key.principal, user=user))
        data_plane.use(replace(snapshot, keys_by_sha256={digest: suspended}))


async def test_a_stream_that_breaks_raises_in_both_sdks(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    stream = await gpt.chat.completions.create(
        model="mock-cut-6-tokens-50", messages=[{"role": "user", "content": "x"}], stream=True
    )
    with pytest.raises(openai.APIError, match="cut"):
        _ = [chunk async for chunk in stream]
    events = await claude.messages.create(
        model="mock-cut-9-tokens-50",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=50,
        stream=True,
    )
    with pytest.raises(anthropic.APIStatusError, match="cut"):
        _ = [event async for event in events]
