"""Anthropic's messages dialect.

A stream is, in order: `message_start` with the input side and a provisional output count,
`content_block_start`, `ping`, one `content_block_delta` for each token, `content_block_stop`,
`message_delta` with the cumulative usage, and `message_stop`.
"""

import secrets
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from dataplane.mock.behaviours import behaviour_of
from dataplane.mock.calls import HOLE_BYTE, Answer, BadCallError, Call
from dataplane.mock.protocol import Request
from dataplane.mock.tokens import byte_count, pieces_of, token_count

_IDENTITY = "msg_%s"
# Providers send a provisional count first; clients must take the last one.
_PROVISIONAL_OUTPUT_TOKENS = 1

# status -> type; any other is by its class.
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_BLOCK_START = (
    b"event: content_block_start\n"
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
)
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}\n\n'
)
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class _Block(msgspec.Struct):
    text: str = ""
    content: Any = None  # text, blocks or an object, by the type of the block


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    system: str | list[_Block] | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(_Body)
_encode = msgspec.json.encode


class Anthropic:
    """`POST /v1/messages`."""

    name = "anthropic"
    hole = HOLE_BYTE * len(_IDENTITY % ("0" * 24))

    def decode(self, request: Request) -> Call:
        """Return the call in `request`; the system prompt counts as input."""
        try:
            body = _decoder.decode(request.body)
        except ValueError as error:  # bytes that are no UTF-8 come as UnicodeDecodeError
            raise BadCallError(f"The request body is malformed: {error}") from error
        behaviour = behaviour_of(body.model)
        text_bytes = byte_count(_text_of(body.system))
        text_bytes += sum(byte_count(_text_of(m.content)) for m in body.messages)
        return Call(
            model=body.model,
            behaviour=behaviour,
            prompt=_prompt_of(body.messages) if behaviour.tokens is None else "",
            input_tokens=token_count(text_bytes),
            limit_tokens=body.max_tokens,
            is_stream=bool(body.stream),
            wants_usage=True,
        )

    def body(self, call: Call, answer: Answer) -> bytes:
        """Return the message object."""
        content = b'[{"type":"text","text":%b}]' % _encode(answer.text)
        return self._message(call, content, _stop_reason(answer), answer, answer.output_tokens)

    def events(self, call: Call, answer: Answer) -> Iterator[tuple[bytes, int]]:
        """Yield the named events of one text block."""
        message = self._message(call, b"[]", b"null", answer, _PROVISIONAL_OUTPUT_TOKENS)
        yield b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % message, 0
        yield _BLOCK_START, 0
        yield _PING, 0
        for piece in pieces_of(answer.text):
            yield _DELTA % _encode(piece), 1
        yield _BLOCK_STOP, 0
        yield (
            (
                b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":%b,'
                b'"stop_sequence":null}%b}\n\n'
                % (_stop_reason(answer), _usage(call, answer, answer.output_tokens))
            ),
            0,
        )
        yield _MESSAGE_STOP, 0

    def identity(self) -> bytes:
        """Return a new message id."""
        return (_IDENTITY % secrets.token_hex(12)).encode()

    def error_body(self, status: int, message: str) -> bytes:
        """Return `{"type": "error", ...}` with a request id."""
        kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return _encode(
            {
                "type": "error",
                "error": {"type": kind, "message": message},
                "request_id": f"req_{secrets.token_hex(12)}",
            }
        )

    def _message(
        self, call: Call, content: bytes, stop_reason: bytes, answer: Answer, output_tokens: int
    ) -> bytes:
        return (
            b'{"id":"%b","type":"message","role":"assistant","model":%b,"content":%b,'
            b'"stop_reason":%b,"stop_sequence":null%b}'
        ) % (
            self.hole,
            _encode(call.model),
            content,
            stop_reason,
            _usage(call, answer, output_tokens),
        )


def _text_of(content: str | list[_Block] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.text + _nested_text(block.content) for block in content or ())


def _nested_text(content: object) -> str:
    """Return the text inside a block, such as what a tool answered; other content has none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (block.get("text") for block in content if isinstance(block, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _prompt_of(messages: list[_Message]) -> str:
    return next((_text_of(m.content) for m in reversed(messages) if m.role == "user"), "")


def _stop_reason(answer: Answer) -> bytes:
    return b'"max_tokens"' if answer.is_limited else b'"end_turn"'


def _usage(call: Call, answer: Answer, output_tokens: int) -> bytes:
    """Return the usage member with the comma before it, or nothing for `no-usage`."""
    if not call.behaviour.reports_usage:
        return b""
    return (
        b',"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":0,"output_tokens":%d}'
    ) % (answer.input_tokens, output_tokens)
