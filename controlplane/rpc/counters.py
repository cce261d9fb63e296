"""Counters between the contract's messages and the domain's values."""

from typing import Final

from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.counters import UNITS, Counter, window_of
from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import LimitUnit
from controlplane.domain.names import SubjectKind

# Amounts and generations stay exact in a double, and in JSON.
MAX_AMOUNT: Final = 2**53
# The longest is the name of a model.
MAX_SUBJECT_ID: Final = 200

# By plain numbers: those of a newer data plane are in none of the enums.
_KINDS: Final = {int(kind): kind for kind in SubjectKind}
_UNITS: Final = {int(unit): unit for unit in UNITS}


def subject_kind_from_proto(kind: int, *, field: str) -> SubjectKind:
    """Return whom counters count.

    Raises:
        InvalidError: There is no such kind.
    """
    found = _KINDS.get(kind)
    if found is None:
        raise InvalidError("no kind of subject", field=f"{field}.subject_kind")
    return found


def subject_from_proto(kind: int, subject_id: str, *, field: str) -> tuple[SubjectKind, str]:
    """Return whom a counter counts.

    Raises:
        InvalidError: There is no such kind, or the id cannot be one of it.
    """
    found = subject_kind_from_proto(kind, field=field)
    is_named = len(subject_id) <= MAX_SUBJECT_ID and "\0" not in subject_id
    if not is_named or bool(subject_id) == (found is SubjectKind.GLOBAL):
        raise InvalidError("no id of such a subject", field=f"{field}.subject_id")
    return found, subject_id


def unit_from_proto(unit: int, *, field: str) -> LimitUnit:
    """Return a unit of which the ledger knows sums.

    Raises:
        InvalidError: It is another one.
    """
    found = _UNITS.get(unit)
    if found is None:
        raise InvalidError("only requests, tokens and spend have sums", field=f"{field}.unit")
    return found


def counter_from_proto(message: limits_pb2.Counter, *, field: str) -> Counter:
    """Return a counter of a calendar period.

    Raises:
        InvalidError: It has none, or something else of it makes no sense.
    """
    kind, subject_id = subject_from_proto(message.subject_kind, message.subject_id, field=field)
    unit = unit_from_proto(message.unit, field=field)
    window = window_of(message.period_id)
    if window is None:
        raise InvalidError("a period is 20261121, 202611 or total", field=f"{field}.period_id")
    if int(window) != int(message.window):
        raise InvalidError("this is a period of another window", field=f"{field}.window")
    if not 0 <= message.reset_generation <= MAX_AMOUNT:
        raise InvalidError("no reset generation", field=f"{field}.reset_generation")
    return Counter(kind, subject_id, unit, message.period_id, message.reset_generation)


def counter_to_proto(counter: Counter) -> limits_pb2.Counter:
    """Return the message that names a counter."""
    return limits_pb2.Counter(
        subject_kind=int(counter.subject_kind),  # type: ignore[arg-type]  # a number of the enum
        subject_id=counter.subject_id,
        unit=int(counter.unit),  # type: ignore[arg-type]  # as above
        window=int(window_of(counter.period_id) or 0),  # type: ignore[arg-type]  # as above
        period_id=counter.period_id,
        reset_generation=counter.reset_generation,
    )
