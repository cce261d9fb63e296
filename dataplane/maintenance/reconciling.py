"""Compares every counter with the ledger, round by round, and sets right what drifted."""

import asyncio
from typing import Final

import structlog

from dataplane.domain.counters import CounterName, Reading
from dataplane.limits.counters import layer_name
from dataplane.limits.operations import Answer, Outcome
from dataplane.maintenance.budget_news import BudgetNews, Capacities
from dataplane.maintenance.counter_table import CounterTable, Place, correction, raising
from dataplane.maintenance.drift import (
    COVERED_MS,
    Suspicion,
    Verdict,
    suspicion_of,
    verdict_of,
)
from dataplane.maintenance.ports import Ledger
from dataplane.maintenance.registry import NodeRegistry

# Limits page, section 8: a node that was not seen for so long is unaccounted for.
SEEN_WITHIN_MS: Final = 15_000
# About 30 MB. Counters that find no room are judged in a later round.
MAX_SUSPICIONS: Final = 50_000

_log = structlog.get_logger(__name__)


class Reconciler:
    """Compares in rounds and remembers what differed; always sets, never adds.

    Attributes:
        drift_total: Counters that were set right, since the start.
        rounds_total: Rounds that came to their end, since the start.
    """

    def __init__(
        self,
        table: CounterTable,
        ledger: Ledger,
        registry: NodeRegistry,
        news: BudgetNews,
        seen_within_ms: int = SEEN_WITHIN_MS,
        covered_ms: int = COVERED_MS,
    ) -> None:
        """Compare `table` with `ledger`; lower only what all nodes of `registry` have reported.

        For `covered_ms` a budget that is behind is left as it is when what it holds makes up for that.
        """
        self._table = table
        self._ledger = ledger
        self._registry = registry
        self._news = news
        self._seen_within_ms = seen_within_ms
        self._covered_ms = covered_ms
        self._suspicions: dict[str, Suspicion] = {}
        self._round = 0
        self.drift_total = 0
        self.rounds_total = 0

    async def round(self, fence: int, capacities: Capacities) -> int:
        """Compare every counter once; return how many there were.

        Raises:
            FencedError: The term is over.
            LedgerUnavailable: Nobody says what the ledger has.
            RedisError, OSError: Redis did not answer.
        """
        self._round += 1
        began_ms = await self._registry.now_ms()
        compared = 0
        quiet: list[tuple[Place, Suspicion]] = []
        async for places in self._table.scan():
            quiet += await self._compare(places, fence, capacities, began_ms)
            compared += len(places)
            await asyncio.sleep(0)
        await self._lower(quiet, fence)
        # What did not differ in this round is forgiven; slices, for there may be many.
        self._suspicions = {
            key: each for key, each in self._suspicions.items() if each.round_number == self._round
        }
        self.rounds_total += 1
        return compared

    async def _compare(
        self, places: list[Place], fence: int, capacities: Capacities, began_ms: int
    ) -> list[tuple[Place, Suspicion]]:
        """Compare a batch, raise what is behind, and return what may be lowered."""
        # The ledger first: what is settled in between puts the counter ahead, never behind.
        sums = await self._ledger.sums([each.counter for each in places])
        readings = await self._table.read(places)
        behind: list[tuple[Place, Suspicion]] = []
        quiet: list[tuple[Place, Suspicion]] = []
        for place, reading, ledger in zip(places, readings, sums, strict=True):
            if reading is None:
                _log.error("counter_unreadable", layer=layer_name(place.counter))
                continue
            if reading.told_percent:
                self._tell_again(place.counter, reading, capacities, began_ms)
            suspicion = self._suspect(place, reading, ledger, began_ms)
            if suspicion is None or not capacities.is_counted(place.counter, began_ms):
                # One that no layer moves is raised when a layer does again: seeding sees to that.
                continue
            match verdict_of(place.counter, suspicion, began_ms, self._covered_ms):
                case Verdict.RAISE:
                    behind.append((place, suspicion))
                case Verdict.LOWER:
                    quiet.append((place, suspicion))
                case Verdict.LEAVE:
                    pass
        await self._raise(behind, fence, capacities, began_ms)
        return quiet

    async def _raise(
        self,
        behind: list[tuple[Place, Suspicion]],
        fence: int,
        capacities: Capacities,
        now_ms: int,
    ) -> None:
        """Raise counters that are behind, whatever they are by now; what caught up is left alone."""
        answers = await self._table.correct(
            raising(
                place,
                suspicion.goal,
                fence,
                capacities.capacity_of(place.counter, now_ms),
                counts_held=suspicion.is_short,
            )
            for place, suspicion in behind
        )
        for (place, suspicion), answer in zip(behind, answers, strict=True):
            if answer[0] != Outcome.MOVED:
                self._note(place, suspicion.goal - suspicion.reading.settled, answer, now_ms)

    async def _lower(self, quiet: list[tuple[Place, Suspicion]], fence: int) -> None:
        """Lower counters that stood still, if every node has reported what it did before that."""
        # What was reaped is charged, and may still be given back: lowered too, it would count twice.
        if not quiet or await self._table.has_reaped():
            return
        roll = await self._registry.read()
        for place, suspicion in quiet:
            if not roll.has_all_before(suspicion.since_ms, self._seen_within_ms):
                continue
            reading, ledger = suspicion.reading, suspicion.ledger
            # Standing still says nothing where nodes were not there to move it: read once more.
            [now] = await self._ledger.sums([place.counter])
            if now == ledger:
                operation = correction(place, reading, ledger, reading.held, fence)
                [answer] = await self._table.correct([operation])
                if answer[0] != Outcome.MOVED:
                    self._note(place, ledger - reading.settled, answer, roll.now_ms)

    def _note(self, place: Place, by: int, answer: Answer, now_ms: int) -> None:
        """Count a counter that was set, and say so."""
        counter = place.counter
        self._suspicions.pop(place.key, None)
        if answer[0] != Outcome.OK:
            _log.error("counter_not_corrected", layer=layer_name(counter), answer=answer)
            return
        self.drift_total += 1
        _log.warning("counter_corrected", layer=layer_name(counter), by=by)
        self._news.tell(answer[1], now_ms)

    def _suspect(
        self, place: Place, reading: Reading, ledger: int, began_ms: int
    ) -> Suspicion | None:
        earlier = self._suspicions.get(place.key)
        suspicion = suspicion_of(reading, ledger, earlier, self._round, began_ms)
        if suspicion is None:
            self._suspicions.pop(place.key, None)
        elif earlier is not None or len(self._suspicions) < MAX_SUSPICIONS:
            self._suspicions[place.key] = suspicion
        return suspicion

    def _tell_again(
        self, counter: CounterName, reading: Reading, capacities: Capacities, now_ms: int
    ) -> None:
        capacity = capacities.capacity_of(counter, now_ms)
        if capacity:
            self._news.tell_again(counter, reading, capacity, now_ms)
