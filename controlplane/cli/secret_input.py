"""Secrets that are typed or piped in. They never stand on a command line, where others can read them."""

import getpass
import re
import sys
from typing import Final

import typer

_MOST_CHARACTERS: Final = 8192
_SECRET: Final = re.compile(r"[!-~]+", re.ASCII)


def secret_from_stdin(option: str = "--secret-stdin", prompt: str = "Secret: ") -> str:
    """Read a secret from stdin, up to its end; from a terminal it is asked for and not shown.

    Args:
        option: Which option wants it, for complaints.
        prompt: What a terminal shows.

    Raises:
        BadParameter: Empty, longer than 8,192 characters, or not visible ASCII; the secret is not repeated.
    """
    # One more than it may be, and a line break: enough to see that it is too long.
    most = _MOST_CHARACTERS + 3
    text = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.read(most)
    secret = text.rstrip("\r\n")
    if not secret:
        raise typer.BadParameter("stdin is empty: pipe the secret in", param_hint=option)
    if len(secret) > _MOST_CHARACTERS or not _SECRET.fullmatch(secret):
        raise typer.BadParameter(
            f"a secret is one line of at most {_MOST_CHARACTERS} visible ASCII characters",
            param_hint=option,
        )
    return secret
