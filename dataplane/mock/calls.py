"""A call as every dialect decodes it, the answer to it, and what a dialect must offer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from dataplane.mock.behaviours import Behaviour
from dataplane.mock.protocol import Request
from dataplane.mock.tokens import byte_count, cut_to_tokens, filler, token_count

# Stands for the identity of an answer in rendered bytes. JSON escapes control characters, so it
# cannot come from a caller's text.
HOLE_BYTE = b"\x00"


class BadCallError(ValueError):
    """A call that its dialect refuses as malformed; the text is safe to show to the caller."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one request asks for. Equal calls get answers that differ in their identity only.

    Attributes:
        model: The name as the caller gave it.
        prompt: Text of the last user message; empty where the answer does not depend on it.
        input_tokens: Tokens of all message text.
        limit_tokens: The most tokens that the answer may have; None for no limit.
        is_stream: The answer is a stream of events.
        wants_usage: The stream carries usage figures; only OpenAI's callers choose.
    """

    model: str
    behaviour: Behaviour
    prompt: str
    input_tokens: int
    limit_tokens: int | None
    is_stream: bool
    wants_usage: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the mock model says to a call, before a dialect gives it a form."""

    text: str
    input_tokens: int
    output_tokens: int
    is_limited: bool


class Dialect(Protocol):
    """One provider's wire format: pure functions between bytes and calls."""

    name: str
    hole: bytes

    def decode(self, request: Request) -> Call:
        """Return the call in `request`.

        Raises:
            BadCallError: The body is not a call of this dialect.
            UnknownModelError: The model does not exist here.
        """

    def body(self, call: Call, answer: Answer) -> bytes:
        """Return the JSON answer, with `hole` where its identity belongs."""

    def events(self, call: Call, answer: Answer) -> Iterator[tuple[bytes, int]]:
        """Yield the events of the streamed answer with the output tokens that each carries."""

    def identity(self) -> bytes:
        """Return a new identity, exactly as long as `hole`."""

    def error_body(self, status: int, message: str) -> bytes:
        """Return the body of an HTTP error in this dialect's shape."""


def answer_to(call: Call) -> Answer:
    """Return the answer that the model name asks for, cut at the caller's limit."""
    tokens = call.behaviour.tokens
    if tokens is None:
        whole = call.prompt
    elif call.limit_tokens is None:
        whole = filler(tokens)
    else:
        # One token more than the limit is enough to see that it was reached.
        whole = filler(min(tokens, call.limit_tokens + 1))
    text = whole if call.limit_tokens is None else cut_to_tokens(whole, call.limit_tokens)
    return Answer(
        text=text,
        input_tokens=call.input_tokens,
        output_tokens=token_count(byte_count(text)),
        is_limited=len(text) < len(whole),
    )
