"""Lines that a person types: edited and remembered on a terminal, read as they are elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import typer

from controlplane.cli.dev_secrets import write_private

_MOST_LINES: Final = 1_000
# A message may be long, but not a whole file in one line.
_MOST_CHARACTERS: Final = 1_000_000


@contextlib.contextmanager
def typed_lines(history: Path | None, prompt: str) -> Iterator[Iterator[str]]:
    """Yield what is typed, line by line, up to the end of input.

    On a terminal a line can be edited, those of earlier sessions are at hand, and Ctrl-C discards the line that is being
    typed. Elsewhere lines are read without a prompt.

    Args:
        history: Where lines are kept, in a file of their owner alone; None to keep none.
        prompt: What a terminal shows before each line.
    """
    if not sys.stdin.isatty():
        yield _piped()
        return
    readline = _line_editor()
    if readline is not None and history is not None:
        _load(readline, history)
    try:
        yield _typed(prompt)
    finally:
        if readline is not None and history is not None:
            _save(readline, history)


def _piped() -> Iterator[str]:
    while line := sys.stdin.readline(_MOST_CHARACTERS):
        yield line.rstrip("\r\n")


def _typed(prompt: str) -> Iterator[str]:
    while True:
        try:
            line = _input(prompt)
        except EOFError:
            # The shell's own prompt begins on a line of its own.
            typer.echo("", err=True)
            return
        except KeyboardInterrupt:
            typer.echo("", err=True)
            continue
        yield line


def _input(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # What is piped on is the answers alone.
    typer.echo(prompt, err=True, nl=False)
    return input()


def _line_editor() -> ModuleType | None:
    """Return the library that `input` edits lines with, or None where Python has none."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _load(readline: ModuleType, history: Path) -> None:
    readline.clear_history()
    readline.set_history_length(_MOST_LINES)
    # A history that cannot be read is none; nothing depends on it.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in history.read_text(encoding="utf-8").splitlines()[-_MOST_LINES:]:
            readline.add_history(line)


def _save(readline: ModuleType, history: Path) -> None:
    """Write the lines ourselves: the library's own function would make a file that others can read."""
    length = readline.get_current_history_length()
    numbers = range(max(1, length - _MOST_LINES + 1), length + 1)
    lines = [readline.get_history_item(number) or "" for number in numbers]
    with contextlib.suppress(OSError):
        write_private(history, "".join(f"{line}\n" for line in lines))
