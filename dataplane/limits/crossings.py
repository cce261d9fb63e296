"""Budgets that came to 80 or 100 percent: told once per counter and percentage."""

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.limits.operations import Answer, Operation, Outcome, Reap, Settle


@dataclass(frozen=True, slots=True)
class Crossing:
    """A budget's counter that has reached a part of its capacity; money in nano-USD.

    Attributes:
        key: The counter; `Keyspace.parse_counter` reads it.
        percent: 80 or 100.
        capacity: The budget.
        settled: What was spent by then.
        held: What requests in flight held by then.
        at_ms: Limiter time of the settlement that reached it.
    """

    key: str
    percent: int
    capacity: int
    settled: int
    held: int
    at_ms: int


def crossings_of(operation: Operation, answer: Answer, now_ms: int) -> Iterator[Crossing]:
    """Yield what the answer to a settle or a reap at limiter time `now_ms` tells."""
    if answer[0] == Outcome.OK and isinstance(operation, Settle | Reap):
        for key, percent, capacity, settled, held in answer[1]:
            yield Crossing(key, percent, capacity, settled, held, now_ms)
