"""Counters, and what is said about them, as the planes tell each other."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import config_service_pb2
from tollkeeper.usage.v1 import usage_service_pb2

from dataplane.domain.counters import (
    MAX_DIFFERENCES,
    BudgetEvent,
    CounterDifference,
    CounterKind,
    CounterName,
    CounterReport,
    CounterTask,
    CounterTaskKind,
    SubjectName,
)
from dataplane.domain.limiting import SubjectKind, Unit, Window

SUBJECT_KINDS: Final = {
    SubjectKind.GLOBAL: limits_pb2.SUBJECT_KIND_GLOBAL,
    SubjectKind.ORGANIZATION: limits_pb2.SUBJECT_KIND_ORGANIZATION,
    SubjectKind.USER: limits_pb2.SUBJECT_KIND_USER,
    SubjectKind.KEY: limits_pb2.SUBJECT_KIND_KEY,
    SubjectKind.DEVICE: limits_pb2.SUBJECT_KIND_DEVICE,
    SubjectKind.IP: limits_pb2.SUBJECT_KIND_IP,
    SubjectKind.ENDPOINT: limits_pb2.SUBJECT_KIND_ENDPOINT,
    SubjectKind.MODEL: limits_pb2.SUBJECT_KIND_MODEL,
}
UNITS: Final = {
    Unit.REQUESTS: limits_pb2.LIMIT_UNIT_REQUESTS,
    Unit.TOKENS: limits_pb2.LIMIT_UNIT_TOKENS,
    Unit.SPEND: limits_pb2.LIMIT_UNIT_SPEND,
    Unit.PARALLEL: limits_pb2.LIMIT_UNIT_PARALLEL,
}
WINDOWS: Final = {
    Window.NONE: limits_pb2.LIMIT_WINDOW_UNSPECIFIED,
    Window.RATE: limits_pb2.LIMIT_WINDOW_RATE,
    Window.MINUTE: limits_pb2.LIMIT_WINDOW_MINUTE,
    Window.DAY: limits_pb2.LIMIT_WINDOW_DAY,
    Window.MONTH: limits_pb2.LIMIT_WINDOW_MONTH,
    Window.TOTAL: limits_pb2.LIMIT_WINDOW_TOTAL,
}
TASK_KINDS: Final = {
    CounterTaskKind.VERIFY: config_service_pb2.COUNTER_TASK_KIND_VERIFY,
    CounterTaskKind.REPAIR: config_service_pb2.COUNTER_TASK_KIND_REPAIR,
    CounterTaskKind.RESET_CLOCK: config_service_pb2.COUNTER_TASK_KIND_RESET_CLOCK,
}
# By plain numbers: those of a newer control plane are in none of the enums.
_SUBJECT_KINDS_BACK: Final = {int(number): kind for kind, number in SUBJECT_KINDS.items()}
_UNITS_BACK: Final = {int(number): unit for unit, number in UNITS.items()}
_WINDOWS_BACK: Final = {int(number): window for window, number in WINDOWS.items()}
_TASK_KINDS_BACK: Final = {int(number): kind for kind, number in TASK_KINDS.items()}


def counter_to_proto(counter: CounterName) -> limits_pb2.Counter:
    """Return the message that names a counter."""
    return limits_pb2.Counter(
        subject_kind=SUBJECT_KINDS[counter.subject_kind],
        subject_id=counter.subject_id,
        unit=UNITS[counter.unit],
        window=WINDOWS[counter.window],
        period_id=counter.period_id,
        reset_generation=counter.reset_generation,
    )


def counter_from_proto(message: limits_pb2.Counter) -> CounterName | None:
    """Return the counter that a message names; None for one that only newer programs know."""
    subject_kind = _SUBJECT_KINDS_BACK.get(message.subject_kind)
    unit, window = _UNITS_BACK.get(message.unit), _WINDOWS_BACK.get(message.window)
    if subject_kind is None or unit is None or window is None:
        return None
    return CounterName(
        subject_kind=subject_kind,
        subject_id=message.subject_id,
        unit=unit,
        window=window,
        period_id=message.period_id,
        reset_generation=message.reset_generation,
    )


def kind_to_proto(kind: CounterKind) -> usage_service_pb2.CounterKind:
    """Return the message that says what a kind of subject is counted by."""
    return usage_service_pb2.CounterKind(
        subject_kind=SUBJECT_KINDS[kind.subject_kind],
        unit=UNITS[kind.unit],
        window=WINDOWS[kind.window],
    )


def subject_to_proto(subject: SubjectName) -> usage_service_pb2.SubjectRef:
    """Return the message that names whom counters count."""
    return usage_service_pb2.SubjectRef(
        subject_kind=SUBJECT_KINDS[subject.subject_kind], subject_id=subject.subject_id
    )


def budget_event_to_proto(event: BudgetEvent) -> usage_service_pb2.BudgetEvent:
    """Return the message that tells of a budget."""
    reached_at = Timestamp()
    reached_at.FromMilliseconds(event.reached_at_ms)
    return usage_service_pb2.BudgetEvent(
        counter=counter_to_proto(event.counter),
        percent=event.percent,
        capacity_nanousd=event.capacity_nanousd,
        settled_nanousd=event.settled_nanousd,
        held_nanousd=event.held_nanousd,
        reached_at=reached_at,
    )


def task_from_proto(message: config_service_pb2.CounterTask) -> CounterTask | None:
    """Return the task of a message; None for one that only newer programs know."""
    kind = _TASK_KINDS_BACK.get(message.kind)
    return None if kind is None else CounterTask(message.task_id, kind)


def report_to_proto(report: CounterReport) -> config_service_pb2.CounterReport:
    """Return the message that tells the outcome of a task, with no more differences than it may."""
    return config_service_pb2.CounterReport(
        task_id=report.task_id,
        problem=report.problem,
        compared=report.compared,
        differing=report.differing,
        differences=[_difference_to_proto(each) for each in report.differences[:MAX_DIFFERENCES]],
    )


def _difference_to_proto(difference: CounterDifference) -> limits_pb2.CounterDifference:
    return limits_pb2.CounterDifference(
        counter=counter_to_proto(difference.counter),
        settled=difference.settled,
        ledger=difference.ledger,
        held=difference.held,
        reserved=difference.reserved,
        repaired=difference.is_repaired,
    )
