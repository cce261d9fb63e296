"""Revocations: how long a command waits for the data planes, and the receipt that it prints."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.durations import duration_from_text
from controlplane.cli.output import Format, note, print_one
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    from tollkeeper.admin.v1.changes_pb2 import RevocationReceipt

_LONGEST_WAIT: Final = timedelta(seconds=30)
# What an answer may take beyond the wait that was asked for.
_PATIENCE_S: Final = 10.0


def _wait(text: str) -> timedelta:
    wait = duration_from_text(text)
    if wait > _LONGEST_WAIT:
        raise ValueError(f"{text!r} is longer than 30s")
    return wait


Wait: TypeAlias = Annotated[
    timedelta,
    typer.Option(
        parser=reader(_wait),
        metavar="TIME",
        help="How long to wait for the data planes; at most 30s.",
    ),
]
TerminateStreams: TypeAlias = Annotated[
    bool,
    typer.Option("--terminate", "--terminate-streams", help="End its streams in flight too."),
]


def milliseconds(wait: timedelta) -> int:
    """Return a wait as the contract writes it."""
    return wait // timedelta(milliseconds=1)


def deadline_s(wait: timedelta) -> float:
    """Return how long a revocation that waits may take, in seconds."""
    return wait.total_seconds() + _PATIENCE_S


def print_receipt(receipt: "RevocationReceipt", output: Format) -> None:
    """Print who obeys a revocation. One that has not answered is no failure, and is named on stderr."""
    print_one(receipt, output)
    if receipt.missing:
        note(f"Revoked, but not yet known to: {', '.join(receipt.missing)}")
