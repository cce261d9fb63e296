"""Budgets that came to 80 or 100 percent, as they are told to the control plane."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final  # Any: what an answer of the script holds

from dataplane.domain.counters import BudgetEvent, CounterName
from dataplane.domain.limiting import SubjectKind, Unit
from dataplane.domain.principals import Principal
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.counters import Keyspace
from dataplane.maintenance.counter_table import Reading
from dataplane.maintenance.ports import Reporter

_PERCENTAGES: Final = (80, 100)
# So many credentials are looked through before other work gets its turn.
_CREDENTIALS_A_TURN: Final = 2_000


class BudgetNews:
    """Tells of crossings, and again of those that were told: the control plane keeps the first."""

    def __init__(self, keyspace: Keyspace, reporter: Reporter) -> None:
        """Tell `reporter`."""
        self._keyspace = keyspace
        self._reporter = reporter

    def tell(self, crossings: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Tell of `[key, percent, capacity, settled, held]`, as the script answers them."""
        for key, percent, capacity, settled, held in crossings:
            counter = self._keyspace.parse_counter(key)
            if counter is not None:
                self._reporter.note_budget_event(
                    BudgetEvent(counter, percent, capacity, settled, held, now_ms)
                )

    def tell_again(
        self, counter: CounterName, reading: Reading, capacity: int, now_ms: int
    ) -> None:
        """Tell of a budget that has crossed before: whoever told of it may have died with it."""
        for percent in _PERCENTAGES:
            if percent <= reading.told_percent:
                self._reporter.note_budget_event(
                    BudgetEvent(counter, percent, capacity, reading.settled, reading.held, now_ms)
                )


class Capacities:
    """How large budgets are under one snapshot.

    Whose calls a budget counts is known by its subject; of an address it is not, nobody can tell
    from its digest who calls from there.
    """

    def __init__(
        self, snapshot: Snapshot, callers: dict[tuple[SubjectKind, str], Principal]
    ) -> None:
        """Keep what `of` found."""
        self.snapshot = snapshot
        self._callers = callers

    @classmethod
    async def of(cls, snapshot: Snapshot) -> "Capacities":
        """Return those of a snapshot; it is looked through in slices of a few milliseconds."""
        callers: dict[tuple[SubjectKind, str], Principal] = {}
        for number, principal in enumerate(principals_of(snapshot)):
            user = principal.user
            callers[principal.kind, principal.principal_id] = principal
            callers[SubjectKind.USER, user.user_id] = principal
            callers[SubjectKind.ORGANIZATION, user.organization.organization_id] = principal
            callers[SubjectKind.GLOBAL, ""] = principal
            if number % _CREDENTIALS_A_TURN == 0:
                await asyncio.sleep(0)
        return cls(snapshot, callers)

    def capacity_of(self, counter: CounterName, now_ms: int) -> int:
        """Return the budget of a counter in nano-USD at `now_ms`; 0 of any other counter."""
        if counter.unit is not Unit.SPEND:
            return 0
        kind, subject_id = counter.subject_kind, counter.subject_id
        is_shared = kind in (SubjectKind.ENDPOINT, SubjectKind.MODEL)
        found = (SubjectKind.GLOBAL, "") if is_shared else (kind, subject_id)
        principal = self._callers.get(found)
        if principal is None:
            return 0
        endpoint = subject_id if kind is SubjectKind.ENDPOINT else ""
        model = subject_id if kind is SubjectKind.MODEL else ""
        plan = self.snapshot.plan_for(principal, "", endpoint, model, now_ms)
        for layer in plan.layers:
            if (
                (layer.subject_kind, layer.subject_id) == (kind, subject_id)
                and (layer.unit, layer.window) == (counter.unit, counter.window)
                and layer.reset_generation == counter.reset_generation
            ):
                return 0 if layer.is_shadow else layer.capacity
        return 0


def principals_of(snapshot: Snapshot) -> Iterable[Principal]:
    """Yield who may call, by each of their keys and devices."""
    yield from (key.principal for key in snapshot.keys_by_sha256.values())
    for device in snapshot.devices_by_sha256.values():
        if device.principal is not None:
            yield device.principal
