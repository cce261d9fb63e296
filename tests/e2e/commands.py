"""Commands of `tollkeeper` in this process: what they do to a stack is the same, and no interpreter is started.

How the program itself starts, reads and prints is for the tests that run it.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from typer.testing import CliRunner, Result

from controlplane.cli.app import app

# `dev` would register a real provider for each of these.
_PROVIDER_KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
# A command has the standard streams and the environment of the process to itself.
_ALONE: Final = threading.Lock()


def invoke(arguments: Sequence[str], settings: Mapping[str, str], stdin: str = "") -> Result:
    """Run a command with no other settings of ours than `settings`; one at a time.

    Returns:
        Its exit code and what it printed.
    """
    absent = dict.fromkeys(os.environ.keys() - clean_environment({}).keys())
    with _ALONE:
        return CliRunner().invoke(
            app, list(arguments), input=stdin, env={**absent, **settings}, catch_exceptions=False
        )


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this environment with no other settings of ours than `settings`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TOLLKEEPER_") and name not in _PROVIDER_KEYS
    }
    return {**kept, **settings}
