"""`tollkeeper chat`: messages to a model, through the gateway."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from controlplane.cli.connection import ClientSettings, client_settings
from controlplane.cli.conversation import Conversation
from controlplane.cli.gateway import CallError, explained, open_gateway
from controlplane.cli.line_editing import typed_lines
from controlplane.cli.output import fail, note
from controlplane.cli.profile import ProfileError, prepared_path
from controlplane.cli.secret_input import secret_from_stdin

# The mock provider of `tollkeeper dev`, which has it always.
DEFAULT_MODEL: Final = "mock-echo"
_MOST_STDIN_CHARACTERS: Final = 10_000_000
_HISTORY: Final = "chat-history"
_PROMPT: Final = "> "
_COMMANDS: Final = "/new begins anew, /model NAME asks another model, /exit or Ctrl-D ends"


def chat(
    message: Annotated[
        str | None, typer.Argument(help="What to say; read from stdin without it.")
    ] = None,
    model: Annotated[str, typer.Option(help="Who answers.")] = DEFAULT_MODEL,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it arrives.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Go on with a line at a time; the model is told what was said before.",
        ),
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Call with this key; - reads it from stdin, out of others' sight.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Send a message to a model and print its answer.

    The gateway and the credential are those of TOLLKEEPER_URL and TOLLKEEPER_API_KEY, else of the
    profile that `tollkeeper login` wrote. In an interactive chat /new begins anew, /model NAME asks
    another model, and /exit or Ctrl-D ends.
    """
    if api_key == "-":
        if message is None and not (interactive and sys.stdin.isatty()):
            raise typer.BadParameter("stdin holds the key: give the message as an argument")
        api_key = secret_from_stdin("--api-key", "API key: ")
    settings = client_settings(api_key)
    try:
        if interactive:
            _talk(settings, model, message, streams=stream)
        else:
            text = _message(message)
            with open_gateway(settings.url, settings.credential) as client:
                Conversation(client, model, streams=stream).say(text)
    except CallError as error:
        fail(str(error))


def _message(given: str | None) -> str:
    if given is not None:
        return given
    if sys.stdin.isatty():
        raise typer.BadParameter("give a message, or pipe one in")
    return sys.stdin.read(_MOST_STDIN_CHARACTERS)


def _talk(settings: ClientSettings, model: str, first: str | None, *, streams: bool) -> None:
    """Hold a conversation until the end of input.

    A refusal is told and the conversation goes on; what was piped in ends with exit code 1 if a turn failed.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        note(_COMMANDS)
    has_failed = False
    with (
        open_gateway(settings.url, settings.credential) as client,
        typed_lines(_history_path() if is_terminal else None, _PROMPT) as lines,
    ):
        conversation = Conversation(client, model, streams=streams)
        if first is not None:
            has_failed = not _say(conversation, settings, first)
        for line in lines:
            text = line.strip()
            if text == "/exit":
                break
            if text.startswith("/"):
                _obey(conversation, text)
            elif text and not _say(conversation, settings, text):
                has_failed = True
    if has_failed and not is_terminal:
        raise typer.Exit(1)


def _say(conversation: Conversation, settings: ClientSettings, text: str) -> bool:
    """Take one turn; return whether it was answered. Ctrl-C ends the turn, not the conversation."""
    try:
        with explained(settings.url):
            conversation.say(text)
    except CallError as error:
        note(str(error))
        return False
    except KeyboardInterrupt:
        note("interrupted")
        return False
    return True


def _obey(conversation: Conversation, command: str) -> None:
    match command.split():
        case ["/new"]:
            conversation.forget()
            note("a new conversation")
        case ["/model", model]:
            conversation.model = model
            note(f"{model} answers from now on")
        case _:
            note(_COMMANDS)


def _history_path() -> Path | None:
    """Return where lines are kept, beside the profile; None where nothing can be kept."""
    with contextlib.suppress(ProfileError):
        return prepared_path().with_name(_HISTORY)
    return None
