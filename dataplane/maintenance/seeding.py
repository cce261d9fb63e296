"""Limits that are new in a configuration begin with what the ledger has, not with nothing.

A budget that is set in the middle of a month counts the month: the counters of a changed subject,
and those of a kind that no limit had before, are raised to the sums at once, also while requests move
them. What the ledger does not have yet (requests that began before the change, or ended a moment ago)
and whatever else comes to exist is found by the rounds of comparison.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Final

import structlog

from dataplane.control.compiling.releasing import Releasing
from dataplane.control.slices import Slices
from dataplane.domain.counters import CounterKind, CounterName, CounterSum, SubjectName
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.sharded_map import MapEdition, ShardedMap
from dataplane.domain.snapshot import Snapshot
from dataplane.domain.sums import counter_kinds, kind_of, open_period_ids
from dataplane.limits.operations import Outcome
from dataplane.maintenance.budget_news import BudgetNews, Capacities, principals_of
from dataplane.maintenance.counter_table import BATCH, CounterTable, parts_of, raising
from dataplane.maintenance.ports import Ledger

# As many subjects as one question may name.
_MAX_SUBJECTS: Final = 1_000

_log = structlog.get_logger(__name__)


class Seeder:
    """Follows the configuration and raises counters that it makes matter."""

    def __init__(self, table: CounterTable, ledger: Ledger, news: BudgetNews) -> None:
        """Begin with no configuration: the first one is new as a whole."""
        self._table = table
        self._ledger = ledger
        self._news = news
        self._seeded: Snapshot | None = None
        self._kinds: frozenset[CounterKind] = frozenset()
        self._tiers: ShardedMap[SubjectName, str] = ShardedMap()
        self._releasing = Releasing()
        # What was counted under `_seeded`.
        self._capacities: Capacities | None = None

    def forget(self) -> None:
        """Take the next configuration as new: somebody else may have followed it meanwhile."""
        self._seeded, self._kinds, self._tiers = None, frozenset(), ShardedMap()
        self._capacities = None

    def is_due(self, snapshot: Snapshot) -> bool:
        """Return whether `follow` has something to look at."""
        return snapshot is not self._seeded

    async def follow(
        self, snapshot: Snapshot, fence: int, capacities: Capacities, now_ms: int
    ) -> int:
        """Raise what `snapshot` makes matter and the one before did not; return how many counters.

        `capacities` are those of `snapshot`.

        Raises:
            FencedError: The term is over.
            LedgerUnavailable, RedisError, OSError: It is to be tried again.
        """
        kinds = counter_kinds(snapshot)
        tiers = await _tiers_of(snapshot)
        self._releasing.watch((tiers,))
        whole = set(kinds - self._kinds)
        subjects = set(_changed(self._seeded, snapshot)) if self._seeded is not None else set()
        if self._seeded is not None:
            # Of a digest nobody can tell the address: all of them, it is one question.
            if any(each.subject_kind is SubjectKind.IP for each in subjects):
                whole |= {each for each in kinds if each.subject_kind is SubjectKind.IP}
            subjects |= await _of_other_tiers(self._tiers, tiers)
            whole |= _of_changed_tiers(self._seeded, snapshot, kinds)
        raised = await self._raise(
            self._sums(whole, kinds - whole, subjects, open_period_ids(now_ms)),
            fence,
            capacities,
            now_ms,
        )
        self._seeded, self._kinds, self._tiers = snapshot, kinds, tiers
        self._capacities = capacities
        if raised:
            _log.info("counters_seeded", raised=raised)
        return raised

    async def _sums(
        self,
        whole: Collection[CounterKind],
        others: Collection[CounterKind],
        subjects: Collection[SubjectName],
        period_ids: Collection[str],
    ) -> AsyncIterator[list[CounterSum]]:
        """Yield the sums of all subjects of some kinds, and those of some subjects of the others."""
        if whole:
            async for sums in self._ledger.list_sums(whole, period_ids):
                yield sums
        counted = {each.subject_kind for each in others}
        named = [each for each in subjects if each.subject_kind in counted]
        for part in parts_of(named, _MAX_SUBJECTS):
            about = {each.subject_kind for each in part}
            few = [each for each in others if each.subject_kind in about]
            async for sums in self._ledger.list_sums(few, period_ids, part):
                yield sums

    async def _raise(
        self,
        batches: AsyncIterator[list[CounterSum]],
        fence: int,
        capacities: Capacities,
        now_ms: int,
    ) -> int:
        raised = 0
        async for sums in batches:
            for part in parts_of(sums, BATCH):
                places = [self._table.place(each.counter) for each in part]
                readings = await self._table.read(places)
                answers = await self._table.correct(
                    raising(
                        place,
                        each.amount,
                        fence,
                        capacities.capacity_of(each.counter, now_ms),
                        counts_held=self._was_counted(each.counter, now_ms),
                    )
                    for place, reading, each in zip(places, readings, part, strict=True)
                    if reading is not None and reading.settled < each.amount
                )
                for answer in answers:
                    if answer[0] == Outcome.OK:
                        raised += 1
                        self._news.tell(answer[1], now_ms)
                await asyncio.sleep(0)
        return raised

    def _was_counted(self, counter: CounterName, now_ms: int) -> bool:
        """Return whether what a counter holds may be in its sum already, as far as anybody knows.

        One that nothing moved before holds what was admitted since the change, and the sum is of before.
        """
        return self._capacities is None or self._capacities.is_counted(counter, now_ms)


def _changed(before: Snapshot, after: Snapshot) -> Iterator[SubjectName]:
    """Yield the subjects whose own limits differ, those that lost or got them among them."""
    for name in before.limits.keys() | after.limits.keys():
        if before.limits.get(name) != after.limits.get(name):
            yield SubjectName(kind_of(name), name.partition(":")[2])


def _of_changed_tiers(
    before: Snapshot, after: Snapshot, kinds: Collection[CounterKind]
) -> set[CounterKind]:
    """Return the kinds of those whom a changed tier or default counts."""
    if before.tiers == after.tiers and before.service == after.service:
        return set()
    of_tiers = (SubjectKind.USER, SubjectKind.KEY, SubjectKind.DEVICE, SubjectKind.IP)
    changed = {SubjectKind.GLOBAL, SubjectKind.USER} if before.service != after.service else set()
    changed |= set(of_tiers) if before.tiers != after.tiers else set()
    return {each for each in kinds if each.subject_kind in changed}


async def _tiers_of(snapshot: Snapshot) -> ShardedMap[SubjectName, str]:
    """Return whose limits come from which tier; in slices, for there may be many."""
    slices = Slices()
    expected = 2 * (len(snapshot.keys_by_sha256) + len(snapshot.devices_by_sha256))
    tiers: MapEdition[SubjectName, str] = MapEdition(ShardedMap(), expected)
    for principal in principals_of(snapshot):
        tiers.put(SubjectName(principal.kind, principal.principal_id), principal.tier)
        tiers.put(SubjectName(SubjectKind.USER, principal.user.user_id), principal.user.tier)
        await slices.breathe()
    return tiers.done()


async def _of_other_tiers(
    before: ShardedMap[SubjectName, str], after: ShardedMap[SubjectName, str]
) -> set[SubjectName]:
    """Return those who have another tier than before."""
    slices = Slices()
    found: set[SubjectName] = set()
    for part in after.parts():
        found.update(each for each, tier in part.items() if before.get(each, tier) != tier)
        await slices.breathe()
    return found
