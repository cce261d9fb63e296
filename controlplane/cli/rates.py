"""The flags that set a rate: `--requests 10 --every 1s --burst 20`, and `--requests-per-second 10` for short."""

import inspect
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Final

import typer

from controlplane.cli.capacities import Capacity, count
from controlplane.cli.durations import duration_from_text
from controlplane.cli.flags import flag
from controlplane.cli.typer_apps import reader

_MILLISECOND: Final = timedelta(milliseconds=1)
_SECOND_MS: Final = 1000
_LONGEST: Final = timedelta(days=1)
_MOST_AT_ONCE: Final = 1_000_000_000


def rate_parameters(prefix: str = "") -> list[inspect.Parameter]:
    """Return the flags of a rate, their names after a prefix: `device-` makes `--device-requests`."""
    per_second = typer.Option(
        f"--{prefix}requests-per-second",
        parser=reader(count),
        metavar="N",
        help="'none' is without limit.",
        show_default=False,
    )
    requests = typer.Option(
        f"--{prefix}requests",
        parser=reader(count),
        metavar="N",
        help=f"So many every --{prefix}every, evenly.",
        show_default=False,
    )
    every = typer.Option(
        f"--{prefix}every",
        parser=reader(_every),
        metavar="TIME",
        help=f"The time of --{prefix}requests, 1ms to 1d.",
        show_default=False,
    )
    burst = typer.Option(
        f"--{prefix}burst",
        min=1,
        max=_MOST_AT_ONCE,
        help="How many of a rate may come at once after a pause; without it, as many as it says.",
        show_default=False,
    )
    return [
        flag(_argument(prefix, "requests_per_second"), Annotated[Capacity | None, per_second]),
        flag(_argument(prefix, "requests"), Annotated[Capacity | None, requests]),
        flag(_argument(prefix, "every"), Annotated[timedelta | None, every]),
        flag(_argument(prefix, "burst"), Annotated[int | None, burst]),
    ]


def pop_rate(arguments: dict[str, object], prefix: str = "") -> Capacity | None:
    """Take the values of these flags out of a call's arguments; return the rate, None when none is given.

    Raises:
        BadParameter: They do not make one rate together, which is wrong usage.
    """
    per_second = arguments.pop(_argument(prefix, "requests_per_second"))
    requests = arguments.pop(_argument(prefix, "requests"))
    every = arguments.pop(_argument(prefix, "every"))
    burst = arguments.pop(_argument(prefix, "burst"))
    if per_second is not None and not (requests is None and every is None):
        raise typer.BadParameter(
            f"--{prefix}requests-per-second is a rate by itself: "
            f"give it without --{prefix}requests and --{prefix}every"
        )
    rate = per_second if requests is None else requests
    if not isinstance(rate, Capacity):
        if every is not None or burst is not None:
            raise typer.BadParameter(f"a rate needs --{prefix}requests beside it")
        return None
    if rate.amount is None:
        if every is not None or burst is not None:
            raise typer.BadParameter("what is without limit has neither a time nor a burst")
        return rate
    if requests is not None and every is None:
        raise typer.BadParameter(f"--{prefix}requests needs --{prefix}every, such as 1s")
    every_ms = every // _MILLISECOND if isinstance(every, timedelta) else _SECOND_MS
    return replace(rate, every_ms=every_ms, burst=burst if isinstance(burst, int) else 0)


def _every(text: str) -> timedelta:
    every = duration_from_text(text)
    if not _MILLISECOND <= every <= _LONGEST:
        raise ValueError(f"{text!r} is not between 1ms and 1d")
    return every


def _argument(prefix: str, name: str) -> str:
    return f"{prefix.replace('-', '_')}{name}"
