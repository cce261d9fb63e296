"""Compares all counters with the ledger for an administrator, and sets right what he wants set right.

Requests go on meanwhile, so a counter is ahead of the ledger nearly always. It differs when two readings
a second apart both show it, each against what the ledger had learned by the later one.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import structlog

from dataplane.domain.counters import MAX_DIFFERENCES, CounterDifference, Reading
from dataplane.domain.limiting import LayerKind, Unit
from dataplane.limits.counters import layer_kind, layer_name
from dataplane.limits.operations import HELD, Find, Outcome
from dataplane.maintenance.budget_news import Capacities
from dataplane.maintenance.counter_table import (
    BATCH,
    OPERATIONS,
    CounterTable,
    Place,
    correction,
    parts_of,
    text_of,
)
from dataplane.maintenance.ports import Desk, Ledger
from dataplane.maintenance.reconciling import SEEN_WITHIN_MS
from dataplane.maintenance.registry import NodeRegistry

# A record is in the ledger long before.
BETWEEN_SECONDS: Final = 1.0
# More than these are a fault that no list of them explains.
_MAX_CANDIDATES: Final = 10_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verification:
    """How many counters were compared, how many differ, and the first 1,000 of those."""

    compared: int
    differing: int
    differences: tuple[CounterDifference, ...]


@dataclass(frozen=True, slots=True)
class _Observation:
    """A counter at one time: what it says, the ledger's sum, what is reserved of it."""

    place: Place
    reading: Reading
    ledger: int
    reserved: int

    @property
    def settled(self) -> int:
        """What requests that are over have left; only budgets keep that apart."""
        is_budget = layer_kind(self.place.counter) is LayerKind.SPEND
        return self.reading.settled if is_budget else self.reading.settled - self.reserved

    @property
    def held(self) -> int:
        return self.reading.held

    @property
    def is_off(self) -> bool:
        return self.settled != self.ledger or self.is_hold_off

    @property
    def is_hold_off(self) -> bool:
        is_budget = layer_kind(self.place.counter) is LayerKind.SPEND
        return is_budget and self.held != self.reserved


class _Reserved(msgspec.Struct):
    reserved_tokens: int = 0


_reserved_decoder: Final = msgspec.json.Decoder(_Reserved)


class Verifier:
    """Verifies the counters under one hash tag."""

    def __init__(
        self,
        desk: Desk,
        table: CounterTable,
        ledger: Ledger,
        registry: NodeRegistry,
        between_seconds: float = BETWEEN_SECONDS,
        seen_within_ms: int = SEEN_WITHIN_MS,
    ) -> None:
        """Read twice, so many seconds apart."""
        self._desk = desk
        self._table = table
        self._ledger = ledger
        self._registry = registry
        self._between_seconds = between_seconds
        self._seen_within_ms = seen_within_ms

    async def verify(self, fence: int, capacities: Capacities, *, repairs: bool) -> Verification:
        """Compare all counters; with `repairs` set those that differ, also downwards.

        One that no layer moves under the present configuration says nothing, and is passed over.

        A counter that is ahead is not lowered while a node that is there has something to report
        that it began before: that arrives by itself. A node that is gone for good stops nobody here.

        Raises:
            FencedError: The term is over.
            LedgerUnavailable, RedisError, OSError: It could not be done; some may be set.
        """
        began_ms = await self._registry.now_ms()
        compared, first = await self._first(capacities, began_ms)
        began_ms = await self._registry.now_ms()
        if not first:
            return Verification(compared, 0, ())
        await asyncio.sleep(self._between_seconds)
        second = await self._second([each.place for each in first.values()])
        both = [
            (first[each.place.key], each)
            for each in second
            if first[each.place.key].place == each.place
        ]
        found = [later for earlier, later in both if _differs(earlier, later)]
        may_lower = repairs and await self._have_all_reported(began_ms)
        differences = []
        for each in found:
            difference = CounterDifference(
                each.place.counter, each.settled, each.ledger, each.held, each.reserved
            )
            if repairs:
                is_repaired = await self._repair(each, fence, may_lower)
                difference = replace(difference, is_repaired=is_repaired)
            differences.append(difference)
        return Verification(compared, len(found), tuple(differences[:MAX_DIFFERENCES]))

    async def _first(
        self, capacities: Capacities, now_ms: int
    ) -> tuple[int, dict[str, _Observation]]:
        """Return how many counters there are, and those that may differ, by their keys."""
        reserved = await self._reserved()
        compared, candidates = 0, dict[str, _Observation]()
        async for places in self._table.scan():
            compared += len(places)
            for each in await self._observe(places, reserved):
                if not each.is_off or len(candidates) >= _MAX_CANDIDATES:
                    continue
                if each.is_hold_off or capacities.is_counted(each.place.counter, now_ms):
                    candidates[each.place.key] = each
            await asyncio.sleep(0)
        return compared, candidates

    async def _second(self, places: Sequence[Place]) -> list[_Observation]:
        observations: list[_Observation] = []
        for part in parts_of(places, BATCH):
            observations += await self._observe(part, await self._reserved())
        return observations

    async def _observe(
        self, places: Sequence[Place], reserved: Mapping[str, int]
    ) -> list[_Observation]:
        sums = await self._ledger.sums([each.counter for each in places])
        readings = await self._table.read(places)
        return [
            _Observation(place, reading, ledger, reserved.get(place.key, 0))
            for place, reading, ledger in zip(places, readings, sums, strict=True)
            if reading is not None
        ]

    async def _reserved(self) -> dict[str, int]:
        """Return what all requests in flight have reserved of each counter, by its key."""
        reserved: Counter[str] = Counter()
        request_ids = [
            text_of(name)
            async for name, _ in self._desk.client.zscan_iter(
                self._desk.keyspace.leases, count=BATCH
            )
        ]
        for part in parts_of(request_ids, OPERATIONS):
            for found in await self._desk.run(*map(Find, part)):
                # One of another counter epoch is in no counter; one that was reaped is settled.
                if found[:2] == [Outcome.OK, HELD]:
                    self._add(reserved, found[2], found[3], found[4])
            await asyncio.sleep(0)
        return reserved

    def _add(
        self, reserved: Counter[str], keys: Sequence[str], meta: str, holds: Sequence[str | int]
    ) -> None:
        """Add what one request has reserved."""
        for key, held in zip(holds[::2], holds[1::2], strict=True):
            reserved[str(key)] += int(held)
        for key in keys:
            counter = self._desk.keyspace.parse_counter(key)
            if counter is not None and layer_kind(counter) is LayerKind.PERIOD:
                is_requests = counter.unit is Unit.REQUESTS
                reserved[key] += 1 if is_requests else _reserved_tokens(meta)

    async def _have_all_reported(self, instant_ms: int) -> bool:
        """Return whether the ledger has what the nodes that are there began before an instant."""
        roll = await self._registry.read()
        present = roll.seen_within(self._seen_within_ms)
        oldest = (roll.nodes[name].oldest_unreported_ms for name in present)
        return all(each is None or each > instant_ms for each in oldest)

    async def _repair(self, off: _Observation, fence: int, may_lower: bool) -> bool:
        """Set a counter to what it should be, if it still is as it was found."""
        reading, by = off.reading, off.ledger - off.settled
        if by < 0 and not may_lower:
            return False
        held = off.reserved if off.is_hold_off else reading.held
        operation = correction(off.place, reading, reading.settled + by, held, fence)
        [answer] = await self._table.correct([operation])
        is_set = bool(answer[0] == Outcome.OK)
        if is_set:
            layer = layer_name(off.place.counter)
            _log.warning("counter_repaired", layer=layer, by=by, held_by=held - reading.held)
        return is_set


def _differs(earlier: _Observation, later: _Observation) -> bool:
    """Return whether two readings show that a counter is off, whatever happened between them."""
    is_ahead = min(earlier.settled, later.settled) > later.ledger
    is_behind = max(earlier.settled, later.settled) < earlier.ledger
    # A hold has no ledger to be measured by: it must be off, and the counter stand still.
    is_hold_off = later.is_hold_off and (earlier.reading, earlier.reserved) == (
        later.reading,
        later.reserved,
    )
    return is_ahead or is_behind or is_hold_off


def _reserved_tokens(meta: str) -> int:
    try:
        return _reserved_decoder.decode(meta).reserved_tokens
    except msgspec.MsgspecError:
        return 0
