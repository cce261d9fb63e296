"""OpenAI's chat completions dialect.

A stream is, in order: the role chunk, one chunk for each token, the finish chunk, the usage chunk
(no choices) if `stream_options.include_usage` asked for it, and `[DONE]`.
"""

import secrets
import time
from collections.abc import Iterator
from typing import Annotated

import msgspec

from dataplane.mock.behaviours import behaviour_of
from dataplane.mock.calls import HOLE_BYTE, Answer, BadCallError, Call
from dataplane.mock.protocol import Request
from dataplane.mock.tokens import byte_count, pieces_of, token_count

# The id and the time stand side by side in every object, so that one replacement fills both.
_IDENTITY = 'chatcmpl-%s","created":%010d'
_DONE = b"data: [DONE]\n\n"

# status -> (type, code); any other is by its class.
_ERRORS: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}

_PositiveTokens = Annotated[int, msgspec.Meta(ge=1)]


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _PositiveTokens | None = None
    max_tokens: _PositiveTokens | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decoder = msgspec.json.Decoder(_Body)
_encode = msgspec.json.encode


class OpenAI:
    """`POST /v1/chat/completions`."""

    name = "openai"
    hole = HOLE_BYTE * len(_IDENTITY % ("0" * 24, 0))

    def decode(self, request: Request) -> Call:
        """Return the call in `request`, limited by the smaller of its two token limits."""
        try:
            body = _decoder.decode(request.body)
        except ValueError as error:  # bytes that are no UTF-8 come as UnicodeDecodeError
            raise BadCallError(f"The request body is malformed: {error}") from error
        if body.n not in (None, 1):
            raise BadCallError("The mock provider gives one choice: `n` must be 1.")
        is_stream = bool(body.stream)
        if body.stream_options is not None and not is_stream:
            raise BadCallError("`stream_options` is only allowed when `stream` is true.")
        behaviour = behaviour_of(body.model)
        limits = [n for n in (body.max_completion_tokens, body.max_tokens) if n is not None]
        return Call(
            model=body.model,
            behaviour=behaviour,
            prompt=_prompt_of(body.messages) if behaviour.tokens is None else "",
            input_tokens=token_count(sum(byte_count(_text_of(m)) for m in body.messages)),
            limit_tokens=min(limits, default=None),
            is_stream=is_stream,
            wants_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        )

    def body(self, call: Call, answer: Answer) -> bytes:
        """Return the completion object."""
        usage = b',"usage":' + _usage(answer) if call.behaviour.reports_usage else b""
        return (
            b'{"id":"%b,"object":"chat.completion","model":%b,"choices":[{"index":0,'
            b'"message":{"role":"assistant","content":%b,"refusal":null},"logprobs":null,'
            b'"finish_reason":%b}]%b}'
        ) % (self.hole, _encode(call.model), _encode(answer.text), _finish(answer), usage)

    def events(self, call: Call, answer: Answer) -> Iterator[tuple[bytes, int]]:
        """Yield the chunks; `usage` is null in all but the last if the caller asked for it."""
        with_usage = call.wants_usage and call.behaviour.reports_usage
        start = b'data: {"id":"%b,"object":"chat.completion.chunk","model":%b,"choices":[' % (
            self.hole,
            _encode(call.model),
        )
        choice = start + b'{"index":0,"delta":'
        end = b"]%b}\n\n" % (b',"usage":null' if with_usage else b"")
        unfinished = b',"logprobs":null,"finish_reason":null}' + end
        yield choice + b'{"role":"assistant","content":"","refusal":null}' + unfinished, 0
        for piece in pieces_of(answer.text):
            yield choice + b'{"content":' + _encode(piece) + b"}" + unfinished, 1
        yield choice + b'{},"logprobs":null,"finish_reason":' + _finish(answer) + b"}" + end, 0
        if with_usage:
            yield start + b'],"usage":' + _usage(answer) + b"}\n\n", 0
        yield _DONE, 0

    def identity(self) -> bytes:
        """Return a new id with the current time in Unix seconds."""
        return (_IDENTITY % (secrets.token_hex(12), time.time())).encode()

    def error_body(self, status: int, message: str) -> bytes:
        """Return `{"error": {...}}`."""
        other = "server_error" if status >= 500 else "invalid_request_error"
        kind, code = _ERRORS.get(status, (other, None))
        error = {"message": message, "type": kind, "param": None, "code": code}
        return _encode({"error": error})


def _text_of(message: _Message) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content) if content else ""


def _prompt_of(messages: list[_Message]) -> str:
    return next((_text_of(m) for m in reversed(messages) if m.role == "user"), "")


def _finish(answer: Answer) -> bytes:
    return b'"length"' if answer.is_limited else b'"stop"'


def _usage(answer: Answer) -> bytes:
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":0}}'
    ) % (answer.input_tokens, answer.output_tokens, answer.input_tokens + answer.output_tokens)
