"""Limits as a snapshot has them."""

from collections.abc import Iterable
from typing import Final

from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window
from dataplane.domain.principals import LimitEntry, SubjectLimits, TemporaryEntry

_SUBJECTS: Final = {
    limits_pb2.SUBJECT_KIND_GLOBAL: SubjectKind.GLOBAL,
    limits_pb2.SUBJECT_KIND_ORGANIZATION: SubjectKind.ORGANIZATION,
    limits_pb2.SUBJECT_KIND_USER: SubjectKind.USER,
    limits_pb2.SUBJECT_KIND_KEY: SubjectKind.KEY,
    limits_pb2.SUBJECT_KIND_DEVICE: SubjectKind.DEVICE,
    limits_pb2.SUBJECT_KIND_IP: SubjectKind.IP,
    limits_pb2.SUBJECT_KIND_ENDPOINT: SubjectKind.ENDPOINT,
    limits_pb2.SUBJECT_KIND_MODEL: SubjectKind.MODEL,
}
_UNITS: Final = {
    limits_pb2.LIMIT_UNIT_REQUESTS: Unit.REQUESTS,
    limits_pb2.LIMIT_UNIT_TOKENS: Unit.TOKENS,
    limits_pb2.LIMIT_UNIT_SPEND: Unit.SPEND,
    limits_pb2.LIMIT_UNIT_PARALLEL: Unit.PARALLEL,
}
_WINDOWS: Final = {
    limits_pb2.LIMIT_WINDOW_UNSPECIFIED: Window.NONE,
    limits_pb2.LIMIT_WINDOW_MINUTE: Window.MINUTE,
    limits_pb2.LIMIT_WINDOW_DAY: Window.DAY,
    limits_pb2.LIMIT_WINDOW_MONTH: Window.MONTH,
    limits_pb2.LIMIT_WINDOW_TOTAL: Window.TOTAL,
    limits_pb2.LIMIT_WINDOW_RATE: Window.RATE,
}


def read_limits(each: RawResource, message: pb.SubjectLimits, now_ms: int) -> SubjectLimits | None:
    """Return what is configured for one subject; None for a kind that is not known here.

    Temporary limits that are over at `now_ms`, in Unix milliseconds, are left out: a clock that is
    set back must not bring them back.

    Raises:
        UnusableResourceError: It or one of its limits is bad.
        ValueError: A limit is out of bounds, or the end of one is no time.
    """
    if message.subject_kind == limits_pb2.SUBJECT_KIND_UNSPECIFIED:
        raise UnusableResourceError("it does not say whom it counts")
    subject = _SUBJECTS.get(message.subject_kind)
    if subject is None:
        # A kind of a newer control plane matches nobody here.
        return None
    is_global = subject is SubjectKind.GLOBAL
    # Limits are found by the id of their resource.
    if each.resource_id != (subject.value if is_global else f"{subject}:{message.subject_id}"):
        raise UnusableResourceError("its id is not that of its subject")
    if not (is_global or message.subject_id):
        raise UnusableResourceError("it does not say whom it counts")
    return SubjectLimits(
        own=read_entries(message.limits, subject),
        temporary=_temporary(message.temporary_limits, subject, now_ms),
        generations=_generations(message.resets),
    )


def read_entries(
    limits: Iterable[limits_pb2.Limit], subject: SubjectKind
) -> tuple[LimitEntry, ...]:
    """Return `limits`, without those that count what is not known here.

    Raises:
        UnusableResourceError: One is bad, or two count the same.
        ValueError: One is out of bounds.
    """
    entries = [entry for entry in (_entry(each, subject) for each in limits) if entry is not None]
    _check_each_once(entries)
    return tuple(entries)


def _temporary(
    limits: Iterable[limits_pb2.TemporaryLimit], subject: SubjectKind, now_ms: int
) -> tuple[TemporaryEntry, ...]:
    temporary: list[TemporaryEntry] = []
    for each in limits:
        if not (each.HasField("limit") and each.HasField("until")):
            raise UnusableResourceError("a temporary limit has no limit or no end")
        entry = _entry(each.limit, subject)
        if entry is not None:
            temporary.append(TemporaryEntry(entry, each.until.ToMilliseconds()))
    _check_each_once(each.entry for each in temporary)
    return tuple(each for each in temporary if now_ms < each.until_ms)


def _check_each_once(entries: Iterable[LimitEntry]) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if entry.counted in seen:
            raise UnusableResourceError(f"it limits {entry.unit} per {entry.window} twice")
        seen.add(entry.counted)


def _generations(resets: Iterable[limits_pb2.CounterReset]) -> dict[tuple[str, str], int]:
    generations: dict[tuple[str, str], int] = {}
    for reset in resets:
        unit, window = _counted(reset.unit, reset.window)
        if unit is None or window is None:
            continue
        if reset.reset_generation < 0:
            raise UnusableResourceError("a reset generation is never negative")
        if (unit, window) in generations:
            raise UnusableResourceError(f"it resets {unit} per {window} twice")
        generations[unit.value, window.value] = reset.reset_generation
    return generations


def _counted(
    unit: limits_pb2.LimitUnit.ValueType, window: limits_pb2.LimitWindow.ValueType
) -> tuple[Unit | None, Window | None]:
    """Return what is counted, over which time; None for what only a newer control plane knows."""
    if unit == limits_pb2.LIMIT_UNIT_UNSPECIFIED:
        raise UnusableResourceError("a limit does not say what it counts")
    return _UNITS.get(unit), _WINDOWS.get(window)


def _entry(limit: limits_pb2.Limit, subject: SubjectKind) -> LimitEntry | None:
    unit, window = _counted(limit.unit, limit.window)
    if unit is None or window is None:
        return None
    every_ms = limit.every_ms
    if limit.unlimited and window is Window.RATE:
        # It makes no layer: it needs no time.
        every_ms = every_ms or 1
    # Built once to be checked: a call that it counts must not be the first to find it wrong.
    Layer(
        subject,
        "checked",
        unit,
        window,
        limit.capacity,
        reset_generation=limit.reset_generation,
        every_ms=every_ms,
        burst=limit.burst,
    )
    return LimitEntry(
        unit=unit.value,
        window=window.value,
        capacity=limit.capacity,
        is_unlimited=limit.unlimited,
        is_hard=not limit.soft,
        is_shadow=limit.shadow,
        reset_generation=limit.reset_generation,
        every_ms=every_ms,
        burst=limit.burst,
    )
