"""Budgets that were used to 80 or 100 percent: told to the control plane until it has them."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

import structlog

from dataplane.domain.counters import BudgetEvent, CounterName

# As many as one batch may carry.
MAX_TAKEN: Final = 500
# About 4 MB. One that finds no room is told of again by whoever compares the counters.
MAX_WAITING: Final = 10_000
# Those that are remembered as told, so that a repetition costs nothing.
MAX_REMEMBERED: Final = 20_000

_log: Final = structlog.get_logger(__name__)
_Key = tuple[CounterName, int]


class BudgetEvents:
    """Those that wait to be told, each once per process; not for several threads.

    What is taken must be sent until it is acknowledged. What is lost with a process is noted again
    by the next comparison of its counter, and the ledger keeps the first of each.
    """

    __slots__ = ("_is_losing", "_noted", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[_Key, BudgetEvent] = {}
        # In the order in which they were noted.
        self._noted: dict[_Key, None] = {}
        self._is_losing = False

    def __len__(self) -> int:
        """Return how many wait to be taken."""
        return len(self._waiting)

    def note(self, event: BudgetEvent) -> None:
        """Note an event; one that was noted before, or that finds no room, changes nothing."""
        key = event.counter, event.percent
        if key in self._noted:
            return
        if len(self._waiting) >= MAX_WAITING:
            if not self._is_losing:
                self._is_losing = True
                _log.error("budget_events_lost", waiting=len(self._waiting))
            return
        self._is_losing = False
        self._waiting[key] = event
        self._noted[key] = None
        if len(self._noted) > MAX_REMEMBERED:
            del self._noted[next(iter(self._noted))]

    def take(self, limit: int = MAX_TAKEN) -> tuple[BudgetEvent, ...]:
        """Return what waits, the oldest first and at most `limit`; it waits no longer."""
        return tuple(self._waiting.pop(key) for key in list(islice(self._waiting, limit)))


def refuse(events: Iterable[BudgetEvent]) -> None:
    """Say for a person that the control plane never takes these."""
    for event in events:
        _log.error(
            "budget_event_refused",
            subject_kind=event.counter.subject_kind.value,
            subject_id=event.counter.subject_id,
            percent=event.percent,
        )
