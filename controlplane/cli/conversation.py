"""A conversation with a model: what was said so far, and the answers, printed as they arrive."""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from controlplane.cli.gateway import (
    CallError,
    answered,
    few_left,
    json_of,
    refusal_of,
    refusal_sentence,
)
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.output import note, printable

if TYPE_CHECKING:
    import httpx
    import httpx_sse
else:
    httpx = imported_on_use("httpx")
    httpx_sse = imported_on_use("httpx_sse")

Message: TypeAlias = dict[str, str]

_PATH: Final = "/v1/chat/completions"


class Conversation:
    """Turns of a user and a model. A turn that failed leaves no trace in what is sent later."""

    def __init__(self, client: "httpx.Client", model: str, *, streams: bool) -> None:
        self.model = model
        self._client = client
        self._streams = streams
        self._messages: list[Message] = []

    def forget(self) -> None:
        """Begin anew."""
        self._messages.clear()

    def say(self, text: str) -> None:
        """Send what the user says and print the model's answer, with a line break at its end.

        Raises:
            CallError: It was refused, or the answer is not whole.
            httpx.HTTPError: The gateway cannot be talked to.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "stream": self._streams}
        answer = self._streamed(body) if self._streams else self._whole(body)
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def _whole(self, body: Mapping[str, object]) -> str:
        response = self._client.post(_PATH, json=body)
        content = _content(answered(response), "message")
        if content is None:
            raise CallError("the gateway's answer is not a chat completion")
        _print(f"{content}\n")
        _warn(response)
        return content

    def _streamed(self, body: Mapping[str, object]) -> str:
        with httpx_sse.connect_sse(self._client, "POST", _PATH, json=body) as source:
            if source.response.status_code != httpx.codes.OK:
                source.response.read()
                raise refusal_of(source.response)
            pieces: list[str] = []
            try:
                is_complete = _print_events(source.iter_sse(), pieces)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                is_complete = False
            finally:
                if pieces:
                    _print("\n")
        if not is_complete:
            raise CallError("the answer was cut short")
        _warn(source.response)
        return "".join(pieces)


def _print_events(events: Iterable["httpx_sse.ServerSentEvent"], pieces: list[str]) -> bool:
    """Print the pieces of an answer and keep them; return whether it came to its end."""
    for event in events:
        if event.data == "[DONE]":
            return True
        chunk = json_of(event.data)
        if isinstance(chunk, dict) and chunk.get("error"):
            sentence = refusal_sentence(chunk, None)
            raise CallError(sentence or "refused: the stream holds an error without a message")
        piece = _content(chunk, "delta")
        if piece:
            pieces.append(piece)
            _print(piece)
    return False


def _content(completion: object, part: str) -> str | None:
    """Return the text of the first choice's `message` or `delta`; None when there is none."""
    match completion:
        case {"choices": [{**choice}, *_]}:
            match choice.get(part):
                case {"content": str(content)}:
                    return content
    return None


def _warn(response: "httpx.Response") -> None:
    warning = few_left(response.headers)
    if warning:
        note(warning)


def _print(text: str) -> None:
    """Print a piece of the answer at once. A terminal gets no control characters: a model wrote them."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()
