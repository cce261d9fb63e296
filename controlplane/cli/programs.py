"""`tollkeeper controlplane`, `dataplane` and `mock`: this process becomes that program."""

import os
import sys
from typing import Annotated, NoReturn

import typer


def controlplane() -> None:
    """Run a control plane, with settings from the environment."""
    _become("controlplane")


def dataplane() -> None:
    """Run a data plane, with settings from the environment."""
    _become("dataplane")


def mock(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 0,
) -> None:
    """Run the mock provider, which prints where it listens as one line of JSON."""
    _become("dataplane.mock", "--host", host, "--port", str(port))


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by a module's program: the same process id, signals and exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    # No shell, and nothing of the user's but checked values.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
