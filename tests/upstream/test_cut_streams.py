"""Streams that the gateway cuts, and those that it must not cut any more."""

import json
from typing import Any

import pytest

from dataplane.domain.calls import Dialect
from dataplane.upstream.answers import StreamReader
from dataplane.upstream.translators.anthropic_anthropic import AnthropicToAnthropic
from dataplane.upstream.translators.openai_openai import OpenAIToOpenAI
from tests.upstream.calls import call

DONE = "[DONE]"


def openai_reader(choices: int = 1, *, hides_usage: bool = True) -> StreamReader:
    asked = call(Dialect.OPENAI, choices=choices, wants_stream_usage=not hides_usage)
    return OpenAIToOpenAI().stream_reader(asked)


def chunk(index: object, text: str = "", reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return b"data: %b\n\n" % json.dumps({"id": "c1", "choices": [choice]}).encode()


def events_in(stream: bytes) -> list[Any]:
    texts = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line]
    return [text if text == DONE else json.loads(text) for text in texts]


def ends_in(stream: bytes) -> list[tuple[int, str]]:
    """Return the choices that a cut ends, each with its reason, and check the events around them."""
    *chunks, done = events_in(stream)
    assert done == DONE
    for each in chunks:
        assert (each["id"], each["x-tollkeeper-stop"]) == ("c1", "budget")
    return [
        (choice["index"], choice["finish_reason"]) for each in chunks for choice in each["choices"]
    ]


def test_a_cut_ends_every_choice_that_is_open_with_an_event_of_its_own() -> None:
    reader = openai_reader(choices=3)
    for index in (2, 0, 1):
        reader.feed(chunk(index, "hello"))

    assert ends_in(reader.cut_short()) == [(0, "length"), (1, "length"), (2, "length")]


def test_a_cut_does_not_end_a_choice_again_that_has_ended() -> None:
    reader = openai_reader(choices=2)
    reader.feed(chunk(0, "hello") + chunk(1, "hello") + chunk(0, reason="stop"))

    assert not reader.is_ending()
    assert ends_in(reader.cut_short()) == [(1, "length")]


def test_a_cut_between_two_choices_ends_the_one_that_has_not_begun() -> None:
    reader = openai_reader(choices=2)
    reader.feed(chunk(0, "hello") + chunk(0, reason="stop"))

    assert not reader.is_ending()
    assert ends_in(reader.cut_short()) == [(1, "length")]


def test_a_cut_tells_the_usage_once_to_a_caller_who_asked_for_it() -> None:
    reader = openai_reader(choices=2, hides_usage=False)
    reader.feed(chunk(0, "hello") + chunk(1, "hello"))

    *ends, usage, done = events_in(reader.cut_short())

    assert [each["choices"][0]["index"] for each in ends] == [0, 1]
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, DONE)


def test_an_answer_is_ending_once_every_choice_said_why() -> None:
    reader = openai_reader(choices=2)
    looks = []
    for event in (chunk(0, "x"), chunk(1, "x"), chunk(1, reason="stop"), chunk(0, "x", "length")):
        reader.feed(event)
        looks.append(reader.is_ending())

    assert looks == [False, False, False, True]


@pytest.mark.parametrize("reason", ["", None])
def test_a_reason_that_says_nothing_ends_nothing(reason: str | None) -> None:
    reader = openai_reader()
    reader.feed(chunk(0, "hello", reason))

    assert not reader.is_ending()
    assert ends_in(reader.cut_short()) == [(0, "length")]


def test_a_provider_that_gives_a_reason_with_every_chunk_can_still_be_cut() -> None:
    reader = openai_reader()
    for _ in range(3):
        reader.feed(chunk(0, "hello", "stop"))

    assert not reader.is_ending()
    assert ends_in(reader.cut_short()) == [(0, "length")]


def test_an_empty_delta_after_the_end_changes_nothing() -> None:
    reader = openai_reader()
    reader.feed(chunk(0, "hello", "stop") + chunk(0))
    assert reader.is_ending()


@pytest.mark.parametrize("index", [None, "0", 0.0])
def test_an_index_that_cannot_be_read_hides_no_text(index: object) -> None:
    reader = openai_reader()
    reader.feed(chunk(index, "x" * 40))
    assert reader.measured_output_tokens() == 10


def test_more_choices_than_were_asked_for_are_not_kept() -> None:
    reader = openai_reader(choices=2)
    for index in range(1_000):
        reader.feed(chunk(index, "hello"))
    assert ends_in(reader.cut_short()) == [(0, "length"), (1, "length")]


def anthropic_look(*events: bytes) -> bool:
    reader = AnthropicToAnthropic().stream_reader(call(Dialect.ANTHROPIC))
    for event in events:
        reader.feed(b"data: %b\n\n" % event)
    return reader.is_ending()


_TEXT = b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"hello"}}'
_STOP = b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}'


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([_TEXT], False),
        ([_TEXT, _STOP], True),
        ([_TEXT, _STOP, b'{"type":"ping"}'], True),
        ([_TEXT, _STOP, b'{"type":"message_delta","delta":{},"usage":{}}'], True),
        ([_TEXT, b'{"type":"message_delta","delta":{"stop_reason":null},"usage":{}}'], False),
        ([_TEXT, _STOP, _TEXT], False),
    ],
)
def test_a_message_is_ending_once_it_said_why(events: list[bytes], expected: bool) -> None:
    assert anthropic_look(*events) is expected
