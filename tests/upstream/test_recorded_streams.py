"""Translators against what providers really sent, however it was cut on the way."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.domain.calls import Call, Dialect, Usage
from dataplane.domain.refusals import Refusal
from dataplane.http.codecs import anthropic, openai
from dataplane.upstream.answers import StreamReader, Translator
from dataplane.upstream.translators.anthropic_anthropic import AnthropicToAnthropic
from dataplane.upstream.translators.openai_openai import OpenAIToOpenAI
from tests import recorded
from tests.upstream.calls import call

ENDPOINTS = {"chat.completions": Dialect.OPENAI, "messages": Dialect.ANTHROPIC}
TRANSLATORS: dict[Dialect, Translator] = {
    Dialect.OPENAI: OpenAIToOpenAI(),
    Dialect.ANTHROPIC: AnthropicToAnthropic(),
}
CODECS = {Dialect.OPENAI: openai, Dialect.ANTHROPIC: anthropic}
BROKEN = {"mid-stream-error", "truncated"}


def cases(is_stream: bool, *endpoints: str) -> list[Any]:
    return [
        pytest.param(ENDPOINTS[endpoint], exchange, id=exchange["id"])
        for endpoint in endpoints or ENDPOINTS
        for exchange in recorded.exchanges(endpoint)
        if exchange["response"]["status"] == 200
        and ("sse" if is_stream else "body") in exchange["response"]
    ]


def pieces(exchange: dict[str, Any], way: str) -> list[bytes]:
    events = [event.encode() for event in exchange["response"]["sse"]]
    whole = b"".join(events)
    if way == "events":
        return events
    return [whole] if way == "whole" else [whole[at : at + 1] for at in range(len(whole))]


def read(reader: StreamReader, chunks: list[bytes]) -> bytes:
    return b"".join([*(reader.feed(chunk) for chunk in chunks), reader.finish()])


def reader_for(dialect: Dialect, *, asks_for_usage: bool = True) -> StreamReader:
    return TRANSLATORS[dialect].stream_reader(call(dialect, wants_stream_usage=asks_for_usage))


def check_usage(usage: Usage, exchange: dict[str, Any]) -> None:
    """Assert that `usage` is what the recording's own reading of it says."""
    expected = exchange["usage"]["normalized"]
    reads = expected.get("iterations_input_total", expected["input_total"])
    writes = expected.get("iterations_output_total", expected["output_total"])
    assert (usage.input_total_tokens, usage.output_tokens) == (reads or 0, writes or 0)
    if "iterations_input_total" not in expected:
        assert usage.cache_read_tokens == (expected["cache_read"] or 0)
        assert usage.input_uncached_tokens == (expected["input_uncached"] or 0)
    assert usage.source == "reported"


def is_complete(exchange: dict[str, Any]) -> bool:
    usage = exchange["usage"]
    return bool(usage and usage["normalized"] and usage.get("complete", True))


@pytest.mark.parametrize("way", ["events", "bytes", "whole"])
@pytest.mark.parametrize(("dialect", "exchange"), cases(True))
def test_a_stream_passes_byte_for_byte_and_its_usage_is_read(
    dialect: Dialect, exchange: dict[str, Any], way: str
) -> None:
    reader = reader_for(dialect)
    chunks = pieces(exchange, way)

    out = read(reader, chunks)

    kinds = set(exchange["kinds"])
    assert (reader.failure is not None) is ("mid-stream-error" in kinds)
    assert reader.is_complete is not bool(kinds & BROKEN)
    if reader.failure is None:
        assert out == b"".join(chunks)
    else:
        assert b"".join(chunks).startswith(out)
        assert b'"error"' not in out
    if is_complete(exchange):
        check_usage(reader.usage(), exchange)
    else:
        assert reader.usage().source in ("estimated", "partial")


@pytest.mark.parametrize("way", ["events", "bytes", "whole"])
@pytest.mark.parametrize(("dialect", "exchange"), cases(True, "chat.completions"))
def test_usage_that_was_not_asked_for_is_hidden_and_nothing_else(
    dialect: Dialect, exchange: dict[str, Any], way: str
) -> None:
    plain, hiding = reader_for(dialect), reader_for(dialect, asks_for_usage=False)
    chunks = pieces(exchange, way)

    shown, hidden = read(plain, chunks), read(hiding, chunks)

    assert list(chunks_in(hidden)) == list(without_usage(chunks_in(shown)))
    assert (hiding.usage(), hiding.is_complete) == (plain.usage(), plain.is_complete)


def chunks_in(stream: bytes) -> Iterator[Any]:
    for line in stream.splitlines():
        if line.startswith(b"data:") and (text := line[5:].strip()) != b"[DONE]":
            yield json.loads(text)


def without_usage(chunks: Iterator[Any]) -> Iterator[Any]:
    for chunk in chunks:
        if chunk.get("usage") and not chunk.get("choices"):
            continue
        yield {name: value for name, value in chunk.items() if name != "usage"}


@pytest.mark.parametrize(("dialect", "exchange"), cases(True))
def test_a_stream_that_is_cut_anywhere_is_not_complete_and_never_free(
    dialect: Dialect, exchange: dict[str, Any]
) -> None:
    events = pieces(exchange, "events")
    for count in range(1, len(events)):
        reader = reader_for(dialect)
        for event in events[:count]:
            reader.feed(event)
        usage = reader.usage()
        assert usage.total_tokens > 0
        assert usage.source != ""


@pytest.mark.parametrize(("dialect", "exchange"), cases(True))
def test_a_stream_is_ending_from_the_reason_on_and_until_then_it_can_be_cut(
    dialect: Dialect, exchange: dict[str, Any]
) -> None:
    body = exchange["request"].get("body")
    choices = (body.get("n") if isinstance(body, dict) else None) or 1
    reader = TRANSLATORS[dialect].stream_reader(call(dialect, choices=choices))
    ended: set[int] = set()
    for event in pieces(exchange, "events"):
        passed = reader.feed(event)
        for chunk in chunks_in(passed):
            if (chunk.get("delta") or {}).get("stop_reason"):
                ended.add(0)
            ended |= {
                each["index"] for each in chunk.get("choices") or () if each.get("finish_reason")
            }

        assert reader.is_ending() is (len(ended) == choices)


@pytest.mark.parametrize(("dialect", "exchange"), cases(False))
def test_a_whole_answers_usage_is_read(dialect: Dialect, exchange: dict[str, Any]) -> None:
    if exchange["response"]["body_kind"] != "json":
        with pytest.raises(Refusal):
            TRANSLATORS[dialect].usage_of(call(dialect), b"")
        return
    body = json.dumps(exchange["response"]["body"]).encode()

    usage = TRANSLATORS[dialect].usage_of(call(dialect), body)

    if is_complete(exchange):
        check_usage(usage, exchange)


@pytest.mark.parametrize(
    ("dialect", "exchange"),
    [
        case
        for is_stream in (True, False)
        for case in cases(is_stream)
        if isinstance(case.values[1]["request"].get("body"), dict)
        and "model" in case.values[1]["request"]["body"]
    ],
)
def test_what_providers_accepted_is_accepted(dialect: Dialect, exchange: dict[str, Any]) -> None:
    body = json.dumps(exchange["request"]["body"]).encode()

    decoded: Call = CODECS[dialect].call_of("0" * 36, body, {}, "")

    assert decoded.model == exchange["request"]["body"]["model"]
    assert json.loads(decoded.body) == json.loads(body)
    if is_complete(exchange) and not is_agentic(exchange):
        assert decoded.input_upper_tokens >= (exchange["usage"]["normalized"]["input_total"] or 0)


def is_agentic(exchange: dict[str, Any]) -> bool:
    """Return whether the provider read more than it was sent: tools that it runs itself."""
    body = exchange["request"]["body"]
    own = any(
        tool.get("type", "custom") not in ("custom", "function") for tool in body.get("tools") or ()
    )
    return own or "mcp_servers" in body or "container" in body
