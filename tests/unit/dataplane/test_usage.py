from typing import Any

import pytest

from dataplane.domain.usage import anthropic_usage, merged, openai_usage
from tests.recorded import exchanges

# The OpenAI-style endpoint of Google leaves thoughts out of the completion and out of every other
# field: only its own translator, which knows whom it asks, can add them.
_RECORDED = [
    (each, read)
    for endpoint, read in (("chat.completions", openai_usage), ("messages", anthropic_usage))
    for each in exchanges(endpoint)
    if each["provider"] != "google" and (each.get("usage") or {}).get("normalized")
]


@pytest.mark.parametrize(("exchange", "read"), _RECORDED, ids=[e["id"] for e, _ in _RECORDED])
def test_recorded_usage_is_read_as_the_provider_bills_it(
    exchange: dict[str, Any], read: Any
) -> None:
    expected = exchange["usage"]["normalized"]

    usage = read(exchange["usage"]["reported"])

    wanted_input = expected.get("iterations_input_total") or expected["input_total"]
    wanted_output = expected.get("iterations_output_total") or expected["output_total"]
    assert usage.input_total_tokens == (wanted_input or 0)
    assert usage.output_tokens == (wanted_output or 0)
    if not expected.get("iterations_input_total"):
        assert usage.input_uncached_tokens == (expected["input_uncached"] or 0)
        assert usage.cache_read_tokens == (expected["cache_read"] or 0)
        written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
        assert written == (expected["cache_write"] or 0)
        assert usage.cache_write_1h_tokens == (expected["cache_write_1h"] or 0)
        assert usage.reasoning_tokens == min(expected["reasoning"] or 0, usage.output_tokens)


def test_more_cached_tokens_than_prompt_never_make_a_negative_cost() -> None:
    usage = openai_usage(
        {
            "prompt_tokens": 7,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 161},
        }
    )

    assert usage.input_uncached_tokens == 0


@pytest.mark.parametrize("nonsense", [-3, 2.5, "12", None, True, [1]])
def test_a_count_that_is_no_count_reads_as_absent(nonsense: object) -> None:
    usage = openai_usage({"prompt_tokens": nonsense, "completion_tokens": 4})

    assert (usage.input_total_tokens, usage.output_tokens) == (0, 4)


def test_a_later_delta_overwrites_and_an_absent_field_keeps_its_value() -> None:
    started = {"input_tokens": 30, "cache_read_input_tokens": 5, "output_tokens": 1}

    usage = anthropic_usage(merged(started, {"output_tokens": 90, "input_tokens": None}))

    assert (usage.input_uncached_tokens, usage.cache_read_tokens, usage.output_tokens) == (
        30,
        5,
        90,
    )
