"""Usage as providers report it, brought to one form.

The rules are those of the providers, checked against recorded traffic: OpenAI counts cached
tokens inside the prompt and reasoning inside the completion; Anthropic counts cached tokens
outside of its input. Numbers that are negative, fractional or no numbers count as absent.
"""

from collections.abc import Iterable, Mapping

from dataplane.domain.calls import Usage, UsageSource

# Providers bill bytes of text at about four to a token when nobody counted.
BYTES_PER_TOKEN = 4


def openai_usage(reported: Mapping[str, object]) -> Usage:
    """Return the usage that an OpenAI-style `usage` object reports."""
    prompt = _count(reported, "prompt_tokens")
    completion = _count(reported, "completion_tokens")
    total = _count(reported, "total_tokens")
    inside = _mapping(reported, "prompt_tokens_details")
    reasoning = _count(_mapping(reported, "completion_tokens_details"), "reasoning_tokens")
    # Mistral leaves audio out of the prompt, xAI reasoning out of the completion: the total tells.
    audio = _count(inside, "audio_tokens")
    if total and prompt + completion != total:
        if prompt + completion + reasoning == total:
            completion += reasoning
        elif prompt + completion + audio == total:
            prompt += audio
    cache_read = (
        _count(inside, "cached_tokens")
        or _count(reported, "cached_tokens")
        or _count(reported, "prompt_cache_hit_tokens")
        or _count(reported, "cache_read_input_tokens")
    )
    cache_write = _count(inside, "cache_write_tokens") or _count(
        reported, "cache_created_input_tokens"
    )
    return Usage(
        input_total_tokens=prompt,
        input_uncached_tokens=max(0, prompt - cache_read - cache_write),
        cache_read_tokens=cache_read,
        cache_write_5m_tokens=cache_write,
        output_tokens=completion,
        reasoning_tokens=min(reasoning, completion),
        source=UsageSource.REPORTED,
    )


def anthropic_usage(reported: Mapping[str, object]) -> Usage:
    """Return the usage that an Anthropic `usage` object reports.

    `iterations` (compaction, advisor and other extra passes) are not part of the top-level
    numbers: where there are some, their sum is what is billed.
    """
    passes = reported.get("iterations")
    if isinstance(passes, list):
        counted = [_anthropic_pass(each) for each in passes if isinstance(each, Mapping)]
        if counted:
            return _sum(counted)
    return _anthropic_pass(reported)


def openai_document(usage: Usage) -> dict[str, int]:
    """Return `usage` as an OpenAI-style `usage` object."""
    return {
        "prompt_tokens": usage.input_total_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def merged(known: Mapping[str, object], newer: Mapping[str, object]) -> dict[str, object]:
    """Return `known` overwritten field by field by what `newer` has.

    Anthropic's `message_delta.usage` is cumulative: the last value of a field wins, an absent or
    null field keeps the old one.
    """
    return {**known, **{name: value for name, value in newer.items() if value is not None}}


def estimated_tokens(text_bytes: int) -> int:
    """Return about how many tokens so many bytes of UTF-8 text are, rounded up."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def _anthropic_pass(reported: Mapping[str, object]) -> Usage:
    uncached = _count(reported, "input_tokens")
    cache_read = _count(reported, "cache_read_input_tokens")
    written = _count(reported, "cache_creation_input_tokens")
    split = _mapping(reported, "cache_creation")
    written_1h = min(_count(split, "ephemeral_1h_input_tokens"), written)
    output = _count(reported, "output_tokens")
    details = _mapping(reported, "output_tokens_details")
    return Usage(
        input_total_tokens=uncached + cache_read + written,
        input_uncached_tokens=uncached,
        cache_read_tokens=cache_read,
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        output_tokens=output,
        reasoning_tokens=min(_count(details, "thinking_tokens"), output),
        source=UsageSource.REPORTED,
    )


def _sum(passes: Iterable[Usage]) -> Usage:
    total = Usage(source=UsageSource.REPORTED)
    for each in passes:
        total = Usage(
            input_total_tokens=total.input_total_tokens + each.input_total_tokens,
            input_uncached_tokens=total.input_uncached_tokens + each.input_uncached_tokens,
            cache_read_tokens=total.cache_read_tokens + each.cache_read_tokens,
            cache_write_5m_tokens=total.cache_write_5m_tokens + each.cache_write_5m_tokens,
            cache_write_1h_tokens=total.cache_write_1h_tokens + each.cache_write_1h_tokens,
            output_tokens=total.output_tokens + each.output_tokens,
            reasoning_tokens=total.reasoning_tokens + each.reasoning_tokens,
            source=UsageSource.REPORTED,
        )
    return total


def _count(mapping: Mapping[str, object], name: str) -> int:
    value = mapping.get(name)
    return value if type(value) is int and value > 0 else 0


def _mapping(mapping: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = mapping.get(name)
    return value if isinstance(value, Mapping) else {}
