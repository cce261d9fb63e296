"""Budget events as data planes tell them, and as the store keeps them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import LimitUnit
from controlplane.rpc.counters import MAX_AMOUNT, counter_from_proto
from controlplane.rpc.usage_records import EARLIEST, LATEST, InvalidRecordError

MAX_BATCH_EVENTS: Final = 500
PERCENTS: Final = frozenset({80, 100})

_AMOUNTS: Final = ("capacity_nanousd", "settled_nanousd", "held_nanousd")


def rows_from_budget_events(events: Sequence[pb.BudgetEvent]) -> list[dict[str, Any]]:
    """Return a value for every column of each event, but its id.

    Raises:
        InvalidRecordError: There are too many, or one can never be stored; names its field.
    """
    _require(len(events) <= MAX_BATCH_EVENTS, f"there are at most {MAX_BATCH_EVENTS} in a batch")
    return [_row_of(event) for event in events]


def _row_of(event: pb.BudgetEvent) -> dict[str, Any]:
    try:
        counter = counter_from_proto(event.counter, field="counter")
    except InvalidError as error:
        raise InvalidRecordError(f"budget event: {error.field} makes no sense") from None
    _require(counter.unit is LimitUnit.SPEND, "counter.unit makes no sense")
    _require(event.percent in PERCENTS, "percent makes no sense")
    amounts = {name: getattr(event, name) for name in _AMOUNTS}
    for name, amount in amounts.items():
        _require(0 <= amount <= MAX_AMOUNT, f"{name} makes no sense")
    return {
        "subject_kind": int(counter.subject_kind),
        "subject_id": counter.subject_id,
        "period_id": counter.period_id,
        "reset_generation": counter.reset_generation,
        "percent": event.percent,
        **amounts,
        "reached_at": _reached_at(event),
    }


def _reached_at(event: pb.BudgetEvent) -> datetime:
    try:
        reached_at = event.reached_at.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        reached_at = LATEST
    _require(EARLIEST <= reached_at < LATEST, "reached_at makes no sense")
    return reached_at


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise InvalidRecordError(f"budget event: {words}")
