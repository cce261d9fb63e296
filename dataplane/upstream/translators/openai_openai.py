"""OpenAI chat completions to a provider that speaks the same: bytes pass, usage is read.

Usage comes in a stream only when asked for, as a last chunk with empty `choices`
(platform.openai.com/docs/api-reference/chat-streaming). The gateway always asks, and takes out
again what the caller did not ask for.
"""

from typing import Final

import msgspec

from dataplane.domain.calls import Call, Usage, UsageSource
from dataplane.domain.refusals import Refusal
from dataplane.domain.routing import Attempt
from dataplane.domain.sse import EventSplitter, data_of, edited, events_of
from dataplane.domain.usage import estimated_tokens, openai_document, openai_usage
from dataplane.upstream.answers import STOP_FIELD, no_answer, provider_failed
from dataplane.upstream.bodies import gives, with_fields
from dataplane.upstream.translators.open_choices import OpenChoices

_INCLUDE_USAGE: Final = b'{"include_usage":true}'
# Providers of this kind know the newer name of the output cap; the others may only know the older.
_NEW_CAP_KINDS: Final = frozenset({"openai", "azure_openai"})
_CAP: Final = "max_tokens"
_NEW_CAP: Final = "max_completion_tokens"
# What was passed on is kept for counting, in case the provider never says; then counted and dropped.
_MAX_UNCOUNTED_BYTES: Final = 512 * 1024
_NULL: Final = msgspec.Raw(b"null")
# What all chunks of an answer have in common.
_HEAD_OF_CHUNK: Final = frozenset({"id", "object", "created", "model", "system_fingerprint"})
_DONE: Final = b"[DONE]"
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, object]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None

    def text_bytes(self) -> int:
        """Return how many bytes of text, reasoning and tool arguments it holds."""
        content = self.content
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content)
        texts = [content, self.reasoning_content or self.reasoning, self.refusal]
        for call in self.tool_calls or ():
            if call.function is not None:
                texts += [call.function.name, call.function.arguments]
        return sum(len(text.encode()) for text in texts if text)


class _Choice(msgspec.Struct):
    index: object = 0
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None

    def place(self) -> int:
        """Return its index; the first where a provider says none that can be read."""
        return self.index if isinstance(self.index, int) else 0


class _Groq(msgspec.Struct):
    usage: dict[str, object] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, object] | None = None
    x_groq: _Groq | None = None
    error: msgspec.Raw = _NULL

    def reported(self) -> dict[str, object] | None:
        """Return the usage figures, wherever they stand."""
        return self.usage or (self.x_groq.usage if self.x_groq is not None else None)

    def is_error(self) -> bool:
        """Return whether it says that the provider failed."""
        return bytes(self.error) != b"null"


_CHUNK = msgspec.json.Decoder(_Chunk)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class OpenAIStreamReader:
    """Reads one stream; see `StreamReader`."""

    def __init__(self, input_estimate_tokens: int, choices: int, *, hides_usage: bool) -> None:
        self.has_content = False
        self.is_complete = False
        self.failure: Refusal | None = None
        self._hides_usage = hides_usage
        self._input_estimate_tokens = input_estimate_tokens
        self._splitter = EventSplitter()
        self._reported: dict[str, object] | None = None
        self._uncounted: list[bytes] = []
        self._uncounted_bytes = 0
        self._counted_text_bytes = 0
        self._choices = OpenChoices(choices)
        self._is_finished = False
        self._first_content = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes; return the whole events for the caller."""
        return self._pass(self._splitter.feed(chunk))

    def finish(self) -> bytes:
        """Take the end; a stream without `[DONE]` is whole if a choice said why it ended."""
        rest = self._pass(self._splitter.rest())
        if not self.is_complete:
            self._count()
            self.is_complete = self._is_finished and self.failure is None
        return rest

    def reported(self) -> Usage | None:
        """Return what the provider has reported so far, if anything."""
        return openai_usage(self._reported) if self._reported else None

    def usage(self) -> Usage:
        """Return the reported usage, or an estimate from what was passed on."""
        if self._reported is not None:
            return openai_usage(self._reported)
        self._count()
        return Usage(
            input_total_tokens=self._input_estimate_tokens,
            input_uncached_tokens=self._input_estimate_tokens,
            output_tokens=estimated_tokens(self._counted_text_bytes),
            source=UsageSource.ESTIMATED,
        )

    def measured_output_tokens(self) -> int:
        """Return how many output tokens were passed on so far, by their bytes."""
        self._count()
        return estimated_tokens(self._counted_text_bytes)

    def is_ending(self) -> bool:
        """Return whether every choice said why it ended, so that only usage and `[DONE]` are due."""
        self._count()
        return self._choices.have_all_ended

    def cut_short(self) -> bytes:
        """Return a chunk for each open choice that says `length`, the usage if it was asked for, `[DONE]`."""
        self._count()
        head = {
            name: value
            for name, value in _OBJECT.decode(self._first_content or b"{}").items()
            if name in _HEAD_OF_CHUNK
        }
        chunks: list[dict[str, object]] = [
            {
                **head,
                "choices": [{"index": index, "delta": {}, "finish_reason": "length"}],
                STOP_FIELD: "budget",
            }
            for index in self._choices.still_open()
        ]
        if not self._hides_usage:
            chunks.append({**head, "choices": [], "usage": openai_document(self.usage())})
        events = [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]
        return b"".join([*events, b"data: [DONE]\n\n"])

    def _pass(self, events: bytes) -> bytes:
        if not events:
            return b""
        if self._hides_usage and b'"usage":null' in events:
            # A quote inside of a JSON string is escaped, so this cannot be part of a text.
            events = events.replace(b',"usage":null', b"")
        if b'"error"' in events or self.failure is not None:
            events = b"".join(self._look_at(event) for event in events_of(events))
        else:
            preamble, rest = self._until_content(events)
            events = preamble + edited(rest, _marks_in(rest), self._look_at)
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
        """Note what an event says; return what of it goes to the caller: after an error, nothing."""
        data = data_of(event)
        if data == _DONE:
            self.is_complete = self.failure is None
        chunk = _decoded(data)
        if chunk is None:
            return event if self.failure is None else b""
        self._reported = chunk.reported() or self._reported
        if chunk.is_error():
            self.failure = self.failure or provider_failed()
        if self.failure is not None:
            return b""
        if not self.has_content and any(_is_content(choice) for choice in chunk.choices or ()):
            self.has_content = True
            self._first_content = data
        if self._hides_usage and b'"usage"' in event:
            return b"" if chunk.usage and not chunk.choices else _without_usage(event)
        return event

    def _count(self) -> None:
        for run in self._uncounted:
            for event in events_of(run):
                chunk = _decoded(data_of(event))
                for choice in (chunk.choices if chunk else None) or ():
                    self._is_finished = self._is_finished or choice.finish_reason is not None
                    text_bytes = choice.delta.text_bytes() if choice.delta is not None else 0
                    self._counted_text_bytes += text_bytes
                    # Some providers send an empty reason with every chunk: none.
                    self._choices.note(
                        choice.place(), has_text=text_bytes > 0, is_end=bool(choice.finish_reason)
                    )
        self._uncounted.clear()
        self._uncounted_bytes = 0


class OpenAIToOpenAI:
    """See `Translator`."""

    path = "/chat/completions"
    ping = b": ping\n\n"

    def body(self, call: Call, attempt: Attempt, output_cap_tokens: int | None) -> bytes:
        """Return the caller's body with the model's name, the output cap and `include_usage`.

        A provider that may not know the newer name of the cap gets the caller's under both: one that
        it passed over would bound nothing. The newer stays, for it may bound reasoning where the older
        does not.
        """
        fields: dict[str, bytes] = {}
        if attempt.model != call.model:
            fields["model"] = msgspec.json.encode(attempt.model)
        knows_new_cap = attempt.provider.kind in _NEW_CAP_KINDS
        if output_cap_tokens is not None:
            fields[_NEW_CAP if knows_new_cap else _CAP] = b"%d" % output_cap_tokens
        elif not knows_new_cap and (own_cap := _cap_of_newer_name(call)) is not None:
            fields[_CAP] = b"%d" % own_cap
        if call.is_stream and not call.wants_stream_usage:
            fields["stream_options"] = _asking_for_usage(call.stream_options)
        return with_fields(call.body, call.given_fields, fields)

    def headers(self, call: Call, attempt: Attempt) -> list[tuple[str, str]]:
        """Return the headers: credential, content type, what the caller may pass."""
        headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if call.is_stream else "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "tollkeeper"),
        ]
        if attempt.credential is not None and attempt.credential.secret is not None:
            secret = attempt.credential.secret.reveal().decode("ascii")
            if attempt.provider.kind == "azure_openai":
                headers.append(("api-key", secret))
            else:
                headers.append(("authorization", f"Bearer {secret}"))
        return headers

    def stream_reader(self, call: Call) -> OpenAIStreamReader:
        """Return a reader that hides usage from a caller who did not ask for it."""
        return OpenAIStreamReader(
            call.input_estimate_tokens, call.choices, hides_usage=not call.wants_stream_usage
        )

    def usage_of(self, call: Call, body: bytes) -> Usage:
        """Return the reported usage of a whole answer, or an estimate from its text."""
        answer = _decoded(body)
        if answer is None:
            raise no_answer()
        if answer.is_error() and not answer.choices:
            raise provider_failed()
        if (reported := answer.reported()) is not None:
            return openai_usage(reported)
        messages = [choice.message for choice in answer.choices or ()]
        text_bytes = sum(message.text_bytes() for message in messages if message is not None)
        return Usage(
            input_total_tokens=call.input_estimate_tokens,
            input_uncached_tokens=call.input_estimate_tokens,
            output_tokens=estimated_tokens(text_bytes),
            source=UsageSource.ESTIMATED,
        )


def _cap_of_newer_name(call: Call) -> int | None:
    """Return the caller's output cap where it stands under the newer name only."""
    if _NEW_CAP not in call.given_fields:
        return None
    if _CAP in call.given_fields and gives(call.body, _CAP):
        return None
    return call.output_cap_tokens


def _marks_in(events: bytes) -> tuple[bytes, ...]:
    """Return what the events that matter hold: usage that is not null, and the end."""
    told = events.count(b'"usage"') - events.count(b'"usage":null')
    if told == 0:
        return (_DONE,)
    return (_DONE, b'"usage":{' if told == events.count(b'"usage":{') else b'"usage"')


def _asking_for_usage(options: bytes | None) -> bytes:
    if options is None or options == b"null":
        return _INCLUDE_USAGE
    return with_fields(options, frozenset(_OPTIONS.decode(options)), {"include_usage": b"true"})


def _is_content(choice: _Choice) -> bool:
    return choice.finish_reason is not None or (
        choice.delta is not None and choice.delta.text_bytes() > 0
    )


def _decoded(data: bytes) -> _Chunk | None:
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        return _CHUNK.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _without_usage(event: bytes) -> bytes:
    """Return `event` without the top-level field; one that only nested objects have stays."""
    parsed = _OBJECT.decode(data_of(event))
    if "usage" not in parsed:
        return event
    del parsed["usage"]
    return b"data: " + msgspec.json.encode(parsed) + b"\n\n"
