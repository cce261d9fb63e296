"""The official client libraries, through both replicas, with nothing changed but address and key."""

import json
import stat
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest

from tests.e2e.customers import Customer, new_customer, prices_of
from tests.e2e.stack import Stack

TEXT = "grüße, 世界"
TOKENS = -(-len(TEXT.encode()) // 4)


def openai_sdk(base_url: str, api_key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=api_key,
        base_url=f"{base_url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        max_retries=0,
    )


def anthropic_sdk(base_url: str, api_key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key=api_key,
        base_url=base_url,
        http_client=anthropic.DefaultAsyncHttpxClient(trust_env=False),
        max_retries=0,
    )


async def asked_openai(base_url: str, api_key: str, text: str = TEXT) -> str | None:
    async with openai_sdk(base_url, api_key) as sdk:
        completion = await sdk.chat.completions.create(
            model="mock-echo", messages=[{"role": "user", "content": text}], max_tokens=50
        )
    return completion.choices[0].message.content


async def asked_anthropic(base_url: str, api_key: str) -> str:
    async with anthropic_sdk(base_url, api_key) as sdk:
        message = await sdk.messages.create(
            model="mock-echo", messages=[{"role": "user", "content": TEXT}], max_tokens=50
        )
    return "".join(block.text for block in message.content if block.type == "text")


async def streamed_openai(base_url: str, api_key: str) -> AsyncIterator[str]:
    async with openai_sdk(base_url, api_key) as sdk:
        stream = await sdk.chat.completions.create(
            model="mock-echo", messages=[{"role": "user", "content": TEXT}], stream=True
        )
        async for chunk in stream:
            # Nobody asked for usage, so that no chunk is without a choice.
            yield chunk.choices[0].delta.content or ""


async def streamed_anthropic(base_url: str, api_key: str) -> AsyncIterator[str]:
    async with (
        anthropic_sdk(base_url, api_key) as sdk,
        sdk.messages.stream(
            model="mock-echo", messages=[{"role": "user", "content": TEXT}], max_tokens=50
        ) as stream,
    ):
        async for text in stream.text_stream:
            yield text


def test_the_one_line_has_exactly_the_promised_fields_and_the_credentials_are_the_owners_alone(
    stack: Stack,
) -> None:
    line = stack.line

    assert stack.line_text.count("\n") == 1
    assert sorted(line) == sorted(
        [
            *("base_url", "base_urls", "api_key", "admin_address", "admin_token"),
            *("console_url", "console_user", "console_password"),
            *("mock_url", "redis_url", "pids"),
        ]
    )
    assert sorted(line["pids"]) == ["controlplane", "dataplanes", "dev", "mock", "redis"]
    assert line["base_url"] == line["base_urls"][0]
    assert len(set(line["base_urls"])) == len(set(line["pids"]["dataplanes"])) == 2
    assert line["pids"]["dev"] == stack.process.pid
    assert [line[name] for name in ("console_url", "console_user", "console_password")] == [
        None
    ] * 3
    credentials = stack.data_dir / "credentials.json"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert json.loads(credentials.read_text(encoding="utf-8")) == line


async def test_both_sdks_complete_and_stream_on_both_replicas_with_one_ledger_row_for_each_call(
    stack: Stack, customer: Customer
) -> None:
    for base_url in stack.base_urls:
        call = (base_url, customer.api_key)
        assert await asked_openai(*call) == TEXT
        assert await asked_anthropic(*call) == TEXT
        assert "".join([piece async for piece in streamed_openai(*call)]) == TEXT
        assert "".join([piece async for piece in streamed_anthropic(*call)]) == TEXT

    rows = customer.ledger(8)
    assert {(row["status"], row["state"], row["source"]) for row in rows} == {
        (200, "settled", "reported")
    }
    assert {(row["input_total"], row["output"]) for row in rows} == {(TOKENS, TOKENS)}
    assert [row["cost_nanousd"] for row in rows] == list(prices_of(rows))
    seen = sorted((row["endpoint"], row["stream"], row["node"]) for row in rows)
    assert seen == sorted(
        (endpoint, stream, node)
        for endpoint in ("chat", "messages")
        for stream in (False, True)
        for node in ("dev-1", "dev-2")
    )
    assert customer.month().settled == sum(prices_of(rows))


async def test_both_sdks_raise_their_rate_limit_error_over_a_limit(stack: Stack) -> None:
    customer = new_customer(stack, "--daily-requests", "1")
    call = (stack.base_urls[0], customer.api_key)
    assert await asked_openai(*call) == TEXT

    with pytest.raises(openai.RateLimitError) as by_openai:
        await asked_openai(*call)
    with pytest.raises(anthropic.RateLimitError) as by_anthropic:
        await asked_anthropic(*call)

    assert by_openai.value.code == "rate_limit_exceeded"
    for refusal in (by_openai.value, by_anthropic.value):
        assert refusal.response.headers["x-tollkeeper-error"] == "rate_limit_exceeded"
        assert int(refusal.response.headers["retry-after"]) > 0
    assert len(customer.ledger(1)) == 1


async def test_both_sdks_raise_their_authentication_error_for_a_wrong_and_for_a_revoked_key(
    stack: Stack, customer: Customer
) -> None:
    base_url = stack.base_urls[1]
    last = "0" if customer.api_key[-1] != "0" else "1"
    wrong = customer.api_key[:-1] + last
    assert await asked_openai(base_url, customer.api_key) == TEXT
    stack.tollkeeper("key", "revoke", customer.key)

    for api_key in (wrong, "sk-not-one-of-ours", customer.api_key):
        with pytest.raises(openai.AuthenticationError) as by_openai:
            await asked_openai(base_url, api_key)
        assert by_openai.value.code == "invalid_api_key"
        with pytest.raises(anthropic.AuthenticationError) as by_anthropic:
            await asked_anthropic(base_url, api_key)
        assert by_anthropic.value.response.headers["x-tollkeeper-error"] == "invalid_api_key"
    assert len(customer.ledger(1)) == 1
