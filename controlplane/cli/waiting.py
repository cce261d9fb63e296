"""`--wait` of every command that changes the configuration: until the data planes have applied it, and which have.

A command says `@waits` and nothing else. What it asks for then carries the wait, and what it prints carries the answer:
`connection` and `output` ask this module for what there is to send and to show.
"""

import functools
import inspect
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from controlplane.cli.durations import duration_from_text
from controlplane.cli.flags import flag
from controlplane.cli.plain import Record, record_of
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    from tollkeeper.admin.v1.changes_pb2 import Propagation

_SHORTEST: Final = timedelta(milliseconds=1)
_LONGEST: Final = timedelta(seconds=60)


class Waiting:
    """One command's wait, over all that it changes: the data planes have the whole of it once they have the last."""

    def __init__(self, wait: timedelta, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._ends_at_s = monotonic_s() + wait.total_seconds()
        self._monotonic_s = monotonic_s
        self.propagation: Propagation | None = None

    def ask(self, request: Any) -> timedelta:  # Any: a request of any method
        """Have a request wait for what is left, at least a moment; return that. Requests that change nothing do not wait."""
        if "wait_for_propagation" not in request.DESCRIPTOR.fields_by_name:
            return timedelta()
        left = max(_SHORTEST, timedelta(seconds=self._ends_at_s - self._monotonic_s()))
        request.wait_for_propagation.FromTimedelta(left)
        return left

    def hear(self, answer: Any) -> None:  # Any: an answer of any method
        """Take from an answer which data planes have applied the change."""
        if "propagation" in answer.DESCRIPTOR.fields_by_name and answer.HasField("propagation"):
            self.propagation = answer.propagation

    def sentence(self, *, is_table: bool) -> str | None:
        """Return what there is to tell people beside what is printed; None when that says it all."""
        if self.propagation is None:
            return "This control plane does not say which data planes have applied a change."
        if self.propagation.missing:
            return f"Changed, but not yet applied by: {', '.join(self.propagation.missing)}"
        if not is_table:
            return None
        applied = [f"{each.node} ({each.ms} ms)" for each in self.propagation.applied]
        return (
            f"Applied by: {', '.join(applied)}"
            if applied
            else "Changed; no data plane is connected."
        )


_current: ContextVar[Waiting | None] = ContextVar("waiting", default=None)


def current_waiting() -> Waiting | None:
    """Return the wait of the running command; None when it has none."""
    return _current.get()


def propagation_fields() -> Record:
    """Return what an object that a command prints has beside its own fields: who has applied it, where that was asked for."""
    waiting = _current.get()
    if waiting is None or waiting.propagation is None:
        return {}
    return {"propagation": record_of(waiting.propagation)}


def waits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option `--wait TIME`. A data plane that has not answered by then is no failure."""

    @functools.wraps(command)
    def run(*, wait: timedelta | None, **arguments: Any) -> None:  # Any: as the command takes them
        if wait is None:
            command(**arguments)
            return
        waiting = Waiting(wait)
        token = _current.set(waiting)
        try:
            command(**arguments)
        finally:
            _current.reset(token)
        sentence = waiting.sentence(is_table=arguments.get("output") == "table")
        if sentence is not None:
            # Here, because `output` shows what this module knows.
            from controlplane.cli.output import note

            note(sentence)

    signature = inspect.signature(command)
    # Typer reads a command's flags from its signature.
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # any function may have one
        parameters=[*signature.parameters.values(), _WAIT]
    )
    return run


def _wait(text: str) -> timedelta:
    wait = duration_from_text(text)
    if not _SHORTEST <= wait <= _LONGEST:
        raise ValueError(f"{text!r} is not between 1ms and 60s")
    return wait


_WAIT: Final = flag(
    "wait",
    Annotated[
        timedelta | None,
        typer.Option(
            parser=reader(_wait),
            metavar="TIME",
            help="Wait so long for the data planes to apply it, at most 60s, and show which have.",
            show_default=False,
        ),
    ],
)
