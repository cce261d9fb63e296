"""What recorded streams do not show."""

import pytest

from dataplane.domain.calls import Dialect
from dataplane.domain.refusals import Refusal
from dataplane.upstream.answers import StreamReader
from dataplane.upstream.translators.anthropic_anthropic import AnthropicToAnthropic
from dataplane.upstream.translators.openai_openai import OpenAIToOpenAI
from tests.upstream.calls import call

OPENAI, ANTHROPIC = OpenAIToOpenAI(), AnthropicToAnthropic()


def openai_reader(*, hides_usage: bool = False) -> StreamReader:
    return OPENAI.stream_reader(call(Dialect.OPENAI, wants_stream_usage=not hides_usage))


def anthropic_reader() -> StreamReader:
    return ANTHROPIC.stream_reader(call(Dialect.ANTHROPIC))


def test_the_end_marker_inside_a_text_ends_nothing() -> None:
    reader = openai_reader()
    reader.feed(b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n\\n"}}]}\n\n')
    assert (reader.has_content, reader.is_complete) == (True, False)
    reader.feed(b"data:[DONE]\r\n\r\n")
    assert reader.is_complete


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'{"usage":null,"choices":[{"index":0}]}', b'{"choices":[{"index":0}]}'),
        (b'{"choices":[{"index":0}], "usage" : null}', b'{"choices":[{"index":0}]}'),
        (b'{"choices":[{"index":0}],"usage": {"x":1}}', b'{"choices":[{"index":0}]}'),
        (b'{"choices":[],"usage":{"total_tokens":1}}', None),
        (b'{"choices":[],"x":{"usage": 5}}', b'{"choices":[],"x":{"usage": 5}}'),
    ],
)
def test_usage_is_hidden_however_it_is_written(event: bytes, expected: bytes | None) -> None:
    reader = openai_reader(hides_usage=True)

    out = reader.feed(b"data: %b\n\n" % event)

    assert out == (b"" if expected is None else b"data: %b\n\n" % expected)


def test_the_last_of_several_usages_counts() -> None:
    reader = openai_reader()
    for tokens in (1, 5, 9):
        reader.feed(
            b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"completion_tokens":%d}}\n\n'
            % tokens
        )
    assert reader.usage().output_tokens == 9


@pytest.mark.parametrize(
    "junk", [b"data: {\xff}\n\n", b"data: {]\n\n", b'data: {"a":' + b"[" * 4000]
)
def test_what_cannot_be_read_passes_as_it_is(junk: bytes) -> None:
    for reader in (openai_reader(), openai_reader(hides_usage=True), anthropic_reader()):
        assert reader.feed(junk + b"\n\n") == junk + b"\n\n"
        assert reader.failure is None


def test_an_endless_event_is_refused() -> None:
    reader = openai_reader()
    for _ in range(8):
        reader.feed(b"x" * (2 * 1024 * 1024))
    with pytest.raises(Refusal):
        reader.feed(b"x")


def test_after_an_error_nothing_goes_to_the_caller_but_usage_is_kept() -> None:
    reader = openai_reader()
    out = reader.feed(
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        b'data: {"error":{"code":500}}\n\n'
        b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n'
    )
    assert out.count(b"data:") == 1
    assert reader.failure is not None
    assert not reader.is_complete
    assert reader.usage().output_tokens == 7


def test_anthropics_later_figures_win_and_none_is_forgotten() -> None:
    reader = anthropic_reader()
    for event in (
        b'{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}',
        b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"hello"}}',
        b'{"type":"message_delta","delta":{},"usage":{"output_tokens":20}}',
        b'{"type":"message_delta","delta":{},"usage":{"input_tokens":11}}',
        b'{"type":"message_delta","delta":{}}',
        b'{"type":"message_stop"}',
        b'{"type":"ping"}',
    ):
        reader.feed(b"data: %b\n\n" % event)
    usage = reader.usage()
    assert (usage.input_total_tokens, usage.output_tokens, usage.source) == (11, 20, "reported")
    assert reader.is_complete


def test_long_answers_without_usage_are_counted_whole() -> None:
    reader = openai_reader()
    for _ in range(3000):
        reader.feed(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 400))
    assert reader.usage().output_tokens == 3000 * 100


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":[{"type":"tool_use","input":{"a":1}}],"usage":{"input_tokens":1,"output_tokens":2}}',
        b'{"content":[{"type":"tool_use","input":{"a":1}},{"type":"text","text":"x"}]}',
    ],
)
def test_tools_in_a_whole_anthropic_answer_are_read(body: bytes) -> None:
    usage = ANTHROPIC.usage_of(call(Dialect.ANTHROPIC), body)
    assert usage.output_tokens == 2
