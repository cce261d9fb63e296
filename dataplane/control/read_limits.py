"""Limits as a snapshot has them."""

from collections.abc import Iterable
from typing import Final

from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, UnusableResourceError
from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window
from dataplane.domain.principals import LimitEntry

_SUBJECTS: Final = {
    limits_pb2.SUBJECT_KIND_GLOBAL: SubjectKind.GLOBAL,
    limits_pb2.SUBJECT_KIND_ORGANIZATION: SubjectKind.ORGANIZATION,
    limits_pb2.SUBJECT_KIND_USER: SubjectKind.USER,
    limits_pb2.SUBJECT_KIND_KEY: SubjectKind.KEY,
    limits_pb2.SUBJECT_KIND_DEVICE: SubjectKind.DEVICE,
    limits_pb2.SUBJECT_KIND_IP: SubjectKind.IP,
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
}


def read_limits(each: RawResource, message: pb.SubjectLimits) -> tuple[LimitEntry, ...]:
    """Return the limits of one subject; none of a kind that is not known here.

    Raises:
        UnusableResourceError: It or one of its limits is bad.
        ValueError: A limit is out of bounds.
    """
    if message.subject_kind == limits_pb2.SUBJECT_KIND_UNSPECIFIED:
        raise UnusableResourceError("it does not say whom it counts")
    subject = _SUBJECTS.get(message.subject_kind)
    if subject is None:
        # A kind of a newer control plane matches nobody here.
        return ()
    is_global = subject is SubjectKind.GLOBAL
    # Limits are found by the id of their resource.
    if each.resource_id != (subject.value if is_global else f"{subject}:{message.subject_id}"):
        raise UnusableResourceError("its id is not that of its subject")
    return read_entries(message.limits, subject)


def read_entries(
    limits: Iterable[limits_pb2.Limit], subject: SubjectKind
) -> tuple[LimitEntry, ...]:
    """Return `limits`, without those that count what is not known here.

    Raises:
        UnusableResourceError: One is bad, or two count the same.
        ValueError: One is out of bounds.
    """
    entries: dict[tuple[str, str], LimitEntry] = {}
    for limit in limits:
        entry = _entry(limit, subject)
        if entry is None:
            continue
        if (entry.unit, entry.window) in entries:
            raise UnusableResourceError(f"it limits {entry.unit} per {entry.window} twice")
        entries[entry.unit, entry.window] = entry
    return tuple(entries.values())


def _entry(limit: limits_pb2.Limit, subject: SubjectKind) -> LimitEntry | None:
    if limit.unit == limits_pb2.LIMIT_UNIT_UNSPECIFIED:
        raise UnusableResourceError("a limit does not say what it counts")
    unit, window = _UNITS.get(limit.unit), _WINDOWS.get(limit.window)
    if unit is None or window is None:
        # Of a newer control plane: it matches nothing here.
        return None
    # Built once to be checked: a call that it counts must not be the first to find it wrong.
    Layer(
        subject,
        "checked",
        unit,
        window,
        limit.capacity,
        reset_generation=limit.reset_generation,
    )
    return LimitEntry(
        unit=unit.value,
        window=window.value,
        capacity=limit.capacity,
        is_unlimited=limit.unlimited,
        is_hard=not limit.soft,
        is_shadow=limit.shadow,
        reset_generation=limit.reset_generation,
    )
