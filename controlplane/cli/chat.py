"""`tollkeeper chat`: one message to a model, through the gateway."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Final, NoReturn
from urllib.parse import urlsplit

import typer

from controlplane.cli.connection import ClientSettings, client_settings, is_loopback
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.output import fail, printable

if TYPE_CHECKING:
    import httpx
    import httpx_sse
else:
    httpx = imported_on_use("httpx")
    httpx_sse = imported_on_use("httpx_sse")

# The mock provider of `tollkeeper dev`, which has it always.
DEFAULT_MODEL: Final = "mock-echo"
_CONNECT_S: Final = 5.0
# Models that reason may be silent for minutes.
_SILENCE_S: Final = 300.0
_MOST_STDIN_CHARACTERS: Final = 10_000_000


def chat(
    message: Annotated[
        str | None, typer.Argument(help="What to say; read from stdin without it.")
    ] = None,
    model: Annotated[str, typer.Option(help="Who answers.")] = DEFAULT_MODEL,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it arrives.")
    ] = False,
) -> None:
    """Send a message to a model and print its answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _message(message)}],
        "stream": stream,
    }
    settings = client_settings()
    try:
        with _client(settings) as client:
            if stream:
                _stream(client, body)
            else:
                _answer(client, body)
    except httpx.TimeoutException:
        fail(f"the gateway at {settings.url} did not answer in time")
    except (httpx.TransportError, httpx.InvalidURL, httpx_sse.SSEError) as error:
        fail(
            f"cannot talk to the gateway at {settings.url} ({error}): "
            "is it running, and is TOLLKEEPER_URL right?"
        )


def _message(given: str | None) -> str:
    if given is not None:
        return given
    if sys.stdin.isatty():
        raise typer.BadParameter("give a message, or pipe one in")
    return sys.stdin.read(_MOST_STDIN_CHARACTERS)


def _client(settings: ClientSettings) -> "httpx.Client":
    if urlsplit(settings.url).scheme not in ("http", "https"):
        raise typer.BadParameter("TOLLKEEPER_URL must begin with http:// or https://")
    host = urlsplit(settings.url).hostname or ""
    return httpx.Client(
        base_url=settings.url,
        headers={"authorization": f"Bearer {settings.api_key}"},
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        # A proxy of the environment is for the world outside.
        trust_env=not is_loopback(host),
    )


def _answer(client: "httpx.Client", body: Mapping[str, object]) -> None:
    response = client.post("/v1/chat/completions", json=body)
    if response.status_code != httpx.codes.OK:
        _refused(response)
    content = _content(_json(response.text), "message")
    if content is None:
        fail("the gateway's answer is not a chat completion")
    _print(content)
    _print("\n")


def _stream(client: "httpx.Client", body: Mapping[str, object]) -> None:
    with httpx_sse.connect_sse(client, "POST", "/v1/chat/completions", json=body) as source:
        if source.response.status_code != httpx.codes.OK:
            source.response.read()
            _refused(source.response)
        try:
            is_complete = _print_events(source.iter_sse())
        except (httpx.RemoteProtocolError, httpx.ReadError):
            is_complete = False
    _print("\n")
    if not is_complete:
        fail("the answer was cut short")


def _print_events(events: Iterable["httpx_sse.ServerSentEvent"]) -> bool:
    """Print the pieces of an answer; return whether it came to its end."""
    for event in events:
        if event.data == "[DONE]":
            return True
        chunk = _json(event.data)
        if isinstance(chunk, dict) and chunk.get("error"):
            _print("\n")
            fail(_refusal(chunk, None) or "refused: the stream holds an error without a message")
        _print(_content(chunk, "delta") or "")
    return False


def _content(completion: object, part: str) -> str | None:
    """Return the text of the first choice's `message` or `delta`; None when there is none."""
    match completion:
        case {"choices": [{**choice}, *_]}:
            match choice.get(part):
                case {"content": str(content)}:
                    return content
    return None


def _refused(response: "httpx.Response") -> NoReturn:
    code = response.headers.get("x-tollkeeper-error")
    fail(_refusal(_json(response.text), code) or f"refused: HTTP {response.status_code}")


def _refusal(body: object, code: str | None) -> str:
    """Return the sentence for a refusal; empty when the body does not say what was refused."""
    match body:
        case {"error": {"message": str(message), **rest}}:
            return (
                f"refused: {code or rest.get('code') or rest.get('type') or 'unknown'}: {message}"
            )
    return f"refused: {code}" if code else ""


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _print(text: str) -> None:
    """Print a piece of the answer at once. A terminal gets no control characters: a model wrote them."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()
