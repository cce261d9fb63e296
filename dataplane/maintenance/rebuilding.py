"""Fills lost counters from the ledger and from what every node hands over.

    ask all nodes ─ wait, at most 2 s ─ read sums ─ set counters ─ restore what is in flight ─ open

Nobody counts meanwhile: the counters are cold, and no node admits. Each counter becomes

    the ledger's sum + records on their way to it + (requests, tokens) what requests in flight reserved

and budgets hold what requests in flight hold. Everything is set or made once, under the fence: a
second rebuilder does no harm, and one that died is followed by another that begins anew.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from dataplane.domain.counters import CounterKind, CounterSum, Reading
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.snapshot import Snapshot
from dataplane.domain.sums import Contribution, amounts_of, counter_kinds, open_period_ids
from dataplane.limits.connection import new_epoch
from dataplane.limits.operations import Outcome
from dataplane.limits.upkeep import Correct, OpenEpoch, Restore
from dataplane.maintenance.counter_table import (
    OPERATIONS,
    CounterTable,
    Place,
    correction,
    parts_of,
)
from dataplane.maintenance.freezing import FROZEN_SECONDS
from dataplane.maintenance.handovers import Handovers, Hold
from dataplane.maintenance.ports import Desk, Ledger
from dataplane.maintenance.registry import NodeRegistry
from dataplane.maintenance.terms import unfenced

# Limits page, section 8.
WAIT_SECONDS: Final = 2.0
# A node that was not there for longer will not answer within two seconds either.
_SEEN_WITHIN_MS: Final = 60_000
# Nodes that are frozen go on after `FROZEN_SECONDS`: the sums must have been read long before.
_READ_SECONDS: Final = FROZEN_SECONDS / 2
_LOOK_SECONDS: Final = 0.01
# Records may arrive between two questions while nobody is frozen that should be.
_ATTEMPTS: Final = 3
_RECORDS_A_TURN: Final = 50
_AT_ONCE: Final = 4

_log = structlog.get_logger(__name__)


class RebuildError(Exception):
    """The counters stay cold, and it is to be tried again; the text says why, for a log."""


def owns_all(_kind: SubjectKind) -> bool:
    """Return that counters of such subjects are under the hash tag: there is but one."""
    return True


@dataclass(slots=True)
class _Lost:
    """What the counters will be made of; sums by the keys of their counters."""

    holds: dict[str, Hold] = field(default_factory=dict)
    contributions: dict[str, Contribution] = field(default_factory=dict)
    sums: dict[str, CounterSum] = field(default_factory=dict)

    @property
    def request_ids(self) -> list[str]:
        return [*self.holds, *self.contributions]


class Rebuilder:
    """Rebuilds cold counters.

    Attributes:
        rebuilt_total: Epochs opened, since the start.
    """

    def __init__(
        self,
        desk: Desk,
        table: CounterTable,
        ledger: Ledger,
        registry: NodeRegistry,
        wait_seconds: float = WAIT_SECONDS,
        owns: Callable[[SubjectKind], bool] = owns_all,
    ) -> None:
        """Wait at most `wait_seconds` for nodes that do not hand over; count what `owns` is true of."""
        self._owns = owns
        self._desk = desk
        self._table = table
        self._ledger = ledger
        self._registry = registry
        self._handovers = Handovers(desk)
        self._wait_seconds = wait_seconds
        self._loop = asyncio.get_running_loop()
        self.rebuilt_total = 0

    async def rebuild(self, snapshot: Snapshot, fence: int) -> bool:
        """Rebuild the counters if they are cold; return whether they were.

        Raises:
            RebuildError, LedgerUnavailable, RedisError, OSError, TimeoutError: They still are.
            FencedError: The term is over.
        """
        if not await self._desk.is_cold():
            return False
        began_at = self._loop.time()
        run_id, now_ms = await self._desk.run_id(), await self._registry.now_ms()
        kinds, period_ids = counter_kinds(snapshot), open_period_ids(now_ms)
        async with asyncio.timeout(_READ_SECONDS):
            # Before anybody is asked to stand still: without a control plane there are no sums.
            expected = await self._expected()
            rebuild_id = secrets.token_hex(8)
            await self._handovers.announce(rebuild_id)
            nodes = await self._frozen(rebuild_id, expected)
            lost = await self._collected(rebuild_id, nodes)
            await self._read_sums(lost, kinds, period_ids)
        await self._count_contributions(lost, kinds, period_ids)
        counters = len(lost.sums)
        await self._set(lost, kinds, period_ids, fence)
        epoch = new_epoch(run_id)
        await self._restore(lost.holds.values(), epoch, fence)
        unfenced(await self._desk.run(OpenEpoch(epoch, fence)))
        self.rebuilt_total += 1
        await self._handovers.end(rebuild_id, nodes)
        _log.warning(
            "counters_rebuilt",
            counters=counters,
            unreported=len(lost.contributions),
            in_flight=len(lost.holds),
            nodes=len(nodes),
            milliseconds=int((self._loop.time() - began_at) * 1000),
        )
        return True

    async def _expected(self) -> frozenset[str]:
        """Return the nodes whose handover is waited for."""
        remembered = self._registry.last.seen_within(_SEEN_WITHIN_MS)
        present = (await self._registry.read()).seen_within(_SEEN_WITHIN_MS)
        return remembered | present | await self._ledger.reporters()

    async def _frozen(self, rebuild_id: str, expected: frozenset[str]) -> frozenset[str]:
        """Wait for the nodes, not for ever; return who has handed over, expected or not."""
        ends_at = self._loop.time() + self._wait_seconds
        while True:
            frozen = await self._handovers.frozen(rebuild_id)
            if expected <= frozen:
                return frozen
            if self._loop.time() >= ends_at:
                missing = sorted(expected - frozen)
                _log.warning("rebuild_goes_on_without", nodes=missing[:20], missing=len(missing))
                return frozen
            await asyncio.sleep(_LOOK_SECONDS)

    async def _collected(self, rebuild_id: str, nodes: Iterable[str]) -> _Lost:
        lost = _Lost()
        for part in await self._handovers.collect(rebuild_id, nodes):
            lost.holds.update((each.request_id, each) for each in part.holds)
            lost.contributions.update((each.request_id, each) for each in part.contributions)
        for request_id in lost.holds:
            # Handed over twice: what it holds is settled from the queue of its process.
            lost.contributions.pop(request_id, None)
        return lost

    async def _read_sums(
        self, lost: _Lost, kinds: frozenset[CounterKind], period_ids: frozenset[str]
    ) -> None:
        """Read the sums, and leave out of `lost` what is in them already.

        Raises:
            RebuildError: The ledger went on to learn of requests that were handed over.
        """
        for _ in range(_ATTEMPTS):
            known = await self._ledger.known(lost.request_ids)
            lost.sums = {}
            async for sums in self._ledger.list_sums(kinds, period_ids):
                lost.sums.update((self._table.place(each.counter).key, each) for each in sums)
                await asyncio.sleep(0)
            if await self._ledger.known(lost.request_ids) == known:
                break
        else:
            raise RebuildError("the ledger does not stand still")
        for request_id in known:
            # A hold that was charged as abandoned is in the sums, too.
            lost.holds.pop(request_id, None)
            lost.contributions.pop(request_id, None)

    async def _count_contributions(
        self, lost: _Lost, kinds: frozenset[CounterKind], period_ids: frozenset[str]
    ) -> None:
        for number, contribution in enumerate(lost.contributions.values(), start=1):
            for counter, amount in amounts_of(contribution):
                kind = CounterKind(counter.subject_kind, counter.unit, counter.window)
                is_counted = kind in kinds and counter.period_id in period_ids
                if amount and is_counted and self._owns(counter.subject_kind):
                    key = self._table.place(counter).key
                    before = lost.sums.get(key)
                    sum_before = 0 if before is None else before.amount
                    lost.sums[key] = CounterSum(counter, sum_before + amount)
            if number % _RECORDS_A_TURN == 0:
                await asyncio.sleep(0)

    async def _set(
        self,
        lost: _Lost,
        kinds: frozenset[CounterKind],
        period_ids: frozenset[str],
        fence: int,
    ) -> None:
        """Set every counter, whether or not there is something left of it."""
        seen: set[str] = set()
        async for places in self._table.scan():
            readings = await self._table.read(places)
            corrections: list[Correct] = []
            for place, reading in zip(places, readings, strict=True):
                key, counter = place
                if key in seen:
                    continue
                seen.add(key)
                target = lost.sums.pop(key, None)
                if reading is None:
                    continue
                kind = CounterKind(counter.subject_kind, counter.unit, counter.window)
                # What was not asked for keeps what it has; the next comparison looks at it.
                is_summed = kind in kinds and counter.period_id in period_ids
                amount = reading.settled if target is None and not is_summed else 0
                if target is not None:
                    amount = target.amount
                if (amount, 0) != (reading.settled, reading.held):
                    corrections.append(correction(place, reading, amount, 0, fence))
            await self._correct(corrections)
        for group in parts_of(list(lost.sums.items()), OPERATIONS * _AT_ONCE):
            # While the server works on one part, the next one is made.
            await asyncio.gather(*(self._make(part, fence) for part in parts_of(group, OPERATIONS)))

    async def _make(self, sums: Sequence[tuple[str, CounterSum]], fence: int) -> None:
        """Make counters that do not exist."""
        await self._correct(
            [
                correction(Place(key, each.counter), _ABSENT, each.amount, 0, fence)
                for key, each in sums
            ]
        )

    async def _correct(self, corrections: list[Correct]) -> None:
        for answer in await self._table.correct(corrections):
            if answer[0] == Outcome.MOVED:
                raise RebuildError("a counter moved: somebody else sets it")
            if answer[0] != Outcome.OK:
                _log.error("counter_not_rebuilt", answer=answer)

    async def _restore(self, holds: Iterable[Hold], epoch: str, fence: int) -> None:
        for part in parts_of(list(holds), OPERATIONS):
            answers = unfenced(
                await self._desk.run(
                    *(
                        Restore(
                            each.request_id,
                            each.counters,
                            each.meta,
                            each.admitted_at_ms,
                            epoch,
                            fence,
                        )
                        for each in part
                    )
                )
            )
            for each, answer in zip(part, answers, strict=True):
                if answer[0] == Outcome.FAULT:
                    _log.error("request_not_restored", request_id=each.request_id)
            await asyncio.sleep(0)


_ABSENT: Final = Reading()
