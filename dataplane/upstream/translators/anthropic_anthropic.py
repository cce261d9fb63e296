"""Anthropic messages to a provider that speaks the same: bytes pass, usage is read.

Anthropic sends usage twice (docs.anthropic.com/en/api/messages-streaming): the input side in
`message_start` with a provisional output count, cumulative figures in `message_delta`. The later
value of each field wins; the two are never added.
"""

from dataclasses import replace
from typing import Final

import msgspec

from dataplane.domain.calls import Call, Usage, UsageSource
from dataplane.domain.refusals import Refusal
from dataplane.domain.routing import Attempt
from dataplane.domain.sse import EventSplitter, data_of, edited, events_of
from dataplane.domain.usage import anthropic_usage, estimated_tokens, merged
from dataplane.upstream.answers import STOP_FIELD, no_answer, provider_failed
from dataplane.upstream.bodies import with_fields

_DEFAULT_VERSION: Final = "2023-06-01"
_MAX_UNCOUNTED_BYTES: Final = 512 * 1024
# What the events hold that matter once there is content.
_MARKS: Final = (b'"usage"', b'"message_stop"')
_NULL: Final = msgspec.Raw(b"null")


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Start(msgspec.Struct):
    usage: dict[str, object] | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Start | None = None
    delta: _Delta | None = None
    usage: dict[str, object] | None = None


class _Block(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    input: msgspec.Raw = _NULL


class _Answer(msgspec.Struct):
    type: str = ""
    content: list[_Block] = []
    usage: dict[str, object] | None = None


_EVENT = msgspec.json.Decoder(_Event)
_ANSWER = msgspec.json.Decoder(_Answer)


class AnthropicStreamReader:
    """Reads one stream; see `StreamReader`."""

    def __init__(self, input_estimate_tokens: int) -> None:
        self.has_content = False
        self.is_complete = False
        self.failure: Refusal | None = None
        self._input_estimate_tokens = input_estimate_tokens
        self._splitter = EventSplitter()
        self._reported: dict[str, object] = {}
        self._has_final_usage = False
        self._uncounted: list[bytes] = []
        self._uncounted_bytes = 0
        self._counted_text_bytes = 0
        self._open_block: int | None = None
        self._has_stopped = False

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes; return the whole events for the caller."""
        return self._pass(self._splitter.feed(chunk))

    def finish(self) -> bytes:
        """Take the end; only `message_stop` makes the answer whole."""
        return self._pass(self._splitter.rest())

    def reported(self) -> Usage | None:
        """Return what the provider has reported so far, if anything."""
        return anthropic_usage(self._reported) if self._reported else None

    def usage(self) -> Usage:
        """Return the final figures, or the input side as reported and the output counted."""
        reported = anthropic_usage(self._reported)
        if self._has_final_usage:
            return reported
        self._count()
        counted = estimated_tokens(self._counted_text_bytes)
        if self._reported:
            output_tokens = max(reported.output_tokens, counted)
            return replace(reported, output_tokens=output_tokens, source=UsageSource.PARTIAL)
        return Usage(
            input_total_tokens=self._input_estimate_tokens,
            input_uncached_tokens=self._input_estimate_tokens,
            output_tokens=counted,
            source=UsageSource.ESTIMATED,
        )

    def measured_output_tokens(self) -> int:
        """Return how many output tokens were passed on so far, by their bytes."""
        self._count()
        return estimated_tokens(self._counted_text_bytes)

    def is_ending(self) -> bool:
        """Return whether the answer said why it stopped, so that only `message_stop` is due."""
        self._count()
        return self._has_stopped

    def cut_short(self) -> bytes:
        """Return the end of the open block, a `message_delta` that says `max_tokens`, and the end."""
        self._count()
        events: list[dict[str, object]] = []
        if self._open_block is not None:
            events.append({"type": "content_block_stop", "index": self._open_block})
        events.append(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
                "usage": {"output_tokens": self.usage().output_tokens},
                STOP_FIELD: "budget",
            }
        )
        events.append({"type": "message_stop"})
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))
            for event in events
        )

    def _pass(self, events: bytes) -> bytes:
        if not events:
            return b""
        if b'"error"' in events or self.failure is not None:
            events = b"".join(self._look_at(event) for event in events_of(events))
        else:
            preamble, rest = self._until_content(events)
            events = preamble + edited(rest, _MARKS, self._look_at)
        self._uncounted.append(events)
        self._uncounted_bytes += len(events)
        if self._uncounted_bytes > _MAX_UNCOUNTED_BYTES:
            self._count()
        return events

    def _until_content(self, events: bytes) -> tuple[bytes, bytes]:
        """Look at events up to the first with content; return these, and what follows."""
        seen, length = [], 0
        for event in () if self.has_content else events_of(events):
            seen.append(self._look_at(event))
            length += len(event)
            if self.has_content:
                break
        return b"".join(seen), events[length:]

    def _look_at(self, event: bytes) -> bytes:
        parsed = _decoded(data_of(event))
        if parsed is None:
            return event if self.failure is None else b""
        match parsed.type:
            case "message_start":
                if parsed.message is not None and parsed.message.usage is not None:
                    self._reported = merged(self._reported, parsed.message.usage)
            case "content_block_delta":
                self.has_content = True
            case "message_delta":
                self.has_content = True
                if parsed.usage is not None:
                    self._reported = merged(self._reported, parsed.usage)
                    if parsed.usage.get("output_tokens") is not None:
                        self._has_final_usage = True
            case "message_stop":
                self.is_complete = self.failure is None
            case "error":
                self.failure = self.failure or provider_failed()
        # After an error nothing more goes to the caller.
        return event if self.failure is None else b""

    def _count(self) -> None:
        for run in self._uncounted:
            for event in events_of(run):
                parsed = _decoded(data_of(event))
                if parsed is None:
                    continue
                if parsed.type == "content_block_start":
                    self._open_block = parsed.index
                elif parsed.type == "content_block_stop":
                    self._open_block = None
                if parsed.delta is not None:
                    delta = parsed.delta
                    texts = (delta.text, delta.thinking, delta.partial_json)
                    text_bytes = sum(len(text.encode()) for text in texts if text)
                    self._counted_text_bytes += text_bytes
                    # One that is written on after its end has not ended.
                    self._has_stopped = (self._has_stopped and text_bytes == 0) or (
                        parsed.type == "message_delta" and bool(delta.stop_reason)
                    )
        self._uncounted.clear()
        self._uncounted_bytes = 0


class AnthropicToAnthropic:
    """See `Translator`."""

    path = "/v1/messages"
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def body(self, call: Call, attempt: Attempt, output_cap_tokens: int | None) -> bytes:
        """Return the caller's body with the model's name; Anthropic's callers always give a cap."""
        fields: dict[str, bytes] = {}
        if attempt.model != call.model:
            fields["model"] = msgspec.json.encode(attempt.model)
        if output_cap_tokens is not None:
            fields["max_tokens"] = b"%d" % output_cap_tokens
        return with_fields(call.body, call.given_fields, fields)

    def headers(self, call: Call, attempt: Attempt) -> list[tuple[str, str]]:
        """Return the headers: credential, version, beta flags of the caller."""
        passed = dict(call.passed_headers)
        headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if call.is_stream else "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "tollkeeper"),
            ("anthropic-version", passed.get("anthropic-version", _DEFAULT_VERSION)),
        ]
        if "anthropic-beta" in passed:
            headers.append(("anthropic-beta", passed["anthropic-beta"]))
        if attempt.credential is not None and attempt.credential.secret is not None:
            headers.append(("x-api-key", attempt.credential.secret.reveal().decode("ascii")))
        return headers

    def stream_reader(self, call: Call) -> AnthropicStreamReader:
        """Return a reader for one streamed answer."""
        return AnthropicStreamReader(call.input_estimate_tokens)

    def usage_of(self, call: Call, body: bytes) -> Usage:
        """Return the reported usage of a whole answer, or an estimate from its text."""
        try:
            answer = _ANSWER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise no_answer() from error
        if answer.type == "error":
            raise provider_failed()
        if answer.usage is not None:
            return anthropic_usage(answer.usage)
        text_bytes = sum(
            len((block.text or "").encode())
            + len((block.thinking or "").encode())
            + (len(bytes(block.input)) if block.input != _NULL else 0)
            for block in answer.content
        )
        return Usage(
            input_total_tokens=call.input_estimate_tokens,
            input_uncached_tokens=call.input_estimate_tokens,
            output_tokens=estimated_tokens(text_bytes),
            source=UsageSource.ESTIMATED,
        )


def _decoded(data: bytes) -> _Event | None:
    try:
        return _EVENT.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
