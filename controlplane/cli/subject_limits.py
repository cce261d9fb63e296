"""What is set for a subject, between commands and LimitService: changing it, and printing it."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.durations import duration_from_text, instant_from_text
from controlplane.cli.layers import LayerName, empty_limit, limit_row
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import timestamp_of
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.plain import Record, enum_word, iso_instant
from controlplane.cli.typer_apps import reader

if TYPE_CHECKING:
    import grpc
    from tollkeeper.admin.v1 import limit_service_pb2 as pb
    from tollkeeper.admin.v1 import limit_service_pb2_grpc as rpc
    from tollkeeper.common.v1 import limits_pb2
    from tollkeeper.common.v1.limits_pb2 import Limit
else:
    limits_pb2 = imported_on_use("tollkeeper.common.v1.limits_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.limit_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.limit_service_pb2_grpc")

LIMIT_COLUMNS: Final = ("subject", "unit", "window", "capacity", "soft", "shadow", "until")
_RESET_COLUMNS: Final = ("subject", "unit", "window", "reset_generation")
_SHORTEST: Final = timedelta(seconds=1)
_LONGEST: Final = timedelta(days=3650)


def _period(text: str) -> timedelta:
    period = duration_from_text(text)
    if not _SHORTEST <= period <= _LONGEST:
        raise ValueError(f"{text!r} is not between 1s and 3650d")
    return period


Period: TypeAlias = Annotated[
    timedelta | None,
    typer.Option(
        "--for",
        parser=reader(_period),
        metavar="TIME",
        help="For how long from now on: 2h, 30d.",
        show_default=False,
    ),
]
End: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--until",
        parser=reader(instant_from_text),
        metavar="TIME",
        help="Until then: 2026-01-31 or an ISO 8601 time. UTC.",
        show_default=False,
    ),
]
Only: TypeAlias = Annotated[
    list[LayerName] | None, typer.Option(help="This one; repeat it. All without it.")
]


def end_of(period: timedelta | None, end: datetime | None) -> datetime:
    """Return when a temporary limit ends, of which exactly one must be given.

    Raises:
        BadParameter: Both or none are, or it lies in the past or beyond what can be written: wrong usage.
    """
    now = datetime.now(UTC)
    if (period is None) == (end is None):
        raise typer.BadParameter("give exactly one of --for and --until")
    if end is None:
        return now + (period or _SHORTEST)
    if end <= now:
        raise typer.BadParameter("--until is over already")
    return end


def set_limits(
    channel: "grpc.Channel", subject: str, limits: "Sequence[Limit]"
) -> "pb.SubjectLimits":
    """Set limits of a subject, such as `user:acme/alice`, and return all that it has."""
    request = pb.SetLimitsRequest(limits=pb.SubjectLimits(subject=subject, limits=limits))
    return rpc.LimitServiceStub(channel).SetLimits(request)


def set_temporary_limits(
    channel: "grpc.Channel", subject: str, limits: "Iterable[Limit]", until: datetime
) -> "pb.SubjectLimits":
    """Set limits of a subject that hold until then, and return all that it has."""
    temporary = [
        limits_pb2.TemporaryLimit(limit=limit, until=timestamp_of(until)) for limit in limits
    ]
    request = pb.SetTemporaryLimitsRequest(subject=subject, limits=temporary)
    return rpc.LimitServiceStub(channel).SetTemporaryLimits(request)


def reset_counters(
    channel: "grpc.Channel", subject: str, only: Iterable[LayerName]
) -> "pb.SubjectLimits":
    """Let counters of a subject start anew, all when none is named, and return all that it has."""
    limits = [empty_limit(name) for name in only]
    request = pb.ResetCountersRequest(subject=subject, limits=limits)
    return rpc.LimitServiceStub(channel).ResetCounters(request)


def print_limits(limits: "pb.SubjectLimits", output: Format) -> None:
    """Print what is set for one subject: an object, or a table with one row for each limit."""
    if output is Format.TABLE:
        print_many(limit_rows(limits), output, LIMIT_COLUMNS)
    else:
        print_one(limits, output)


def limit_rows(limits: "pb.SubjectLimits") -> list[Record]:
    """Return a row for each limit, first those that last."""
    return [
        *({"subject": limits.subject, **limit_row(limit)} for limit in limits.limits),
        *(
            {
                "subject": limits.subject,
                **limit_row(temporary.limit),
                "until": iso_instant(temporary.until),
            }
            for temporary in limits.temporary_limits
        ),
    ]


def print_resets(limits: "pb.SubjectLimits", output: Format) -> None:
    """Print what is set for a subject whose counters were reset: an object, or a table of the counters."""
    if output is not Format.TABLE:
        print_one(limits, output)
        return
    rows: list[Record] = [
        {
            "subject": limits.subject,
            "unit": enum_word(limits_pb2.LimitUnit.DESCRIPTOR, reset.unit),
            "window": enum_word(limits_pb2.LimitWindow.DESCRIPTOR, reset.window),
            "reset_generation": reset.reset_generation,
        }
        for reset in limits.resets
    ]
    print_many(rows, output, _RESET_COLUMNS)
