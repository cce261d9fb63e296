"""Admits within emergency limits, in this process alone, while counters cannot be read.

The rules are in `domain.emergency`. Nothing here waits: not for Redis, and for the disk no longer than a
small write(2) takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from dataplane.domain.denials import closed_denial
from dataplane.domain.emergency import (
    RateCount,
    RollingCount,
    budget_share,
    is_counted,
    share_of,
    untouched,
)
from dataplane.domain.limiting import (
    MAX_AMOUNT,
    NEVER_MS,
    Demand,
    Denial,
    Denied,
    Layer,
    LayerKind,
    LayerPlan,
    LimitsUnavailable,
    Standing,
    Unit,
    Window,
)
from dataplane.domain.periods import Calendar
from dataplane.limits.emergency_spend import EmergencySpend

# About 20 MB. Subjects beyond that are refused until others' windows are over.
MAX_COUNTS: Final = 50_000
# Looking for windows that are over takes some milliseconds.
_PRUNE_MS: Final = 1_000
# Kinds whose counts outlive the request.
_REMEMBERED: Final = (LayerKind.RATE, LayerKind.ROLLING)

_log: Final = structlog.get_logger(__name__)
_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a reservation took that can be corrected.

    `tokens` are the counts of tokens and their slots; `parallel` the layers whose slots it has.
    """

    day: str
    organization_id: str
    demand: Demand
    tokens: tuple[tuple[RollingCount, int], ...]
    parallel: tuple[_Key, ...]


class LocalReservation:
    """What a request took of this process' emergency limits, until it is settled or released.

    The first of `settle` and `release` counts; later ones do nothing. Both are plain calls.
    """

    __slots__ = ("_close", "_taken", "admitted_at_ms", "is_open", "request_id", "standings")

    is_degraded: Final = True

    def __init__(
        self,
        request_id: str,
        admitted_at_ms: int,
        standings: tuple[Standing, ...],
        taken: _Taken,
        close: Callable[[_Taken, int, int], None],
    ) -> None:
        """Wrap what was taken; made by `Emergency` only.

        Args:
            request_id: The request.
            admitted_at_ms: Unix milliseconds of this process.
            standings: Every layer in the plan's order, right after it was admitted: those that are
                counted here with this replica's share, the others as if nothing of them were used.
            taken: What it took.
            close: Replaces that by so many tokens and nano-USD.
        """
        self.request_id = request_id
        self.admitted_at_ms = admitted_at_ms
        self.standings = standings
        self.is_open = True
        self._taken = taken
        self._close = close

    @property
    def service_admitted_at_ms(self) -> int:
        """When it was admitted to what organizations share: at the same time."""
        return self.admitted_at_ms

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what was taken by what the request took.

        Raises:
            ValueError: An amount is negative or above 2^53.
        """
        if not (0 <= tokens <= MAX_AMOUNT and 0 <= cost_nanousd <= MAX_AMOUNT):
            raise ValueError("a settlement is between 0 and 2^53 in each unit")
        if self.is_open:
            self.is_open = False
            self._close(self._taken, tokens, cost_nanousd)

    def release(self) -> None:
        """Give back all but the request itself: no byte of it was written upstream."""
        self.settle(0, 0)

    async def extend(self, expected_nanousd: int) -> bool:
        """Return true: no soft budget is counted here, and its upper bound was taken."""
        return True


class Emergency:
    """The emergency limits of one data-plane process; belongs to its event loop."""

    def __init__(self, data_dir: Path, clock_ms: Callable[[], int]) -> None:
        """Read what was spent today; blocks on the disk for a moment.

        Args:
            data_dir: Where the day's spend is kept; this process has it to itself.
            clock_ms: Unix milliseconds; where it goes back, time stands still.
        """
        self._directory = data_dir
        self._clock_ms = clock_ms
        self._latest_ms = 0
        self._calendar = Calendar()
        self._rolling: dict[_Key, RollingCount] = {}
        self._rates: dict[_Key, RateCount] = {}
        self._parallel: dict[_Key, int] = {}
        self._pruned_at_ms = 0
        self._spend = EmergencySpend(data_dir, self._day(self._now_ms()))

    def reserve(
        self,
        request_id: str,
        plan: LayerPlan,
        demand: Demand,
        organization_id: str,
        max_replicas: int,
    ) -> LocalReservation:
        """Take `demand` from this replica's share of every layer that is counted here, or nothing.

        Whether the organization may be served at all is for `may_fail_open` to say.

        Args:
            request_id: The request.
            plan: Its layers.
            demand: The most it can take; its upper cost counts against the emergency budget.
            organization_id: Whose emergency budget.
            max_replicas: Among how many limits are divided.

        Raises:
            Denied: A share was short, or a layer refuses everything. Its `binding.reset_ms` is
                `NEVER_MS` where the request is larger than the share, though not than the limit.
            LimitsUnavailable: The day's emergency budget is used up, or too many are counted.
        """
        if plan.closed_layer is not None:
            raise Denied(closed_denial(plan.closed_layer))
        now_ms = self._now_ms()
        standings, binding = self._standings(plan, demand, max_replicas, now_ms)
        if binding is not None:
            is_never = _amount(binding.layer, demand) > binding.layer.capacity
            # Of the others nobody knows where they stand.
            counted = tuple(each for each in standings if is_counted(each.layer))
            raise Denied(Denial(binding, is_never, counted, is_degraded=True))
        self._make_room(plan, now_ms)
        day = self._day(now_ms)
        if day != self._spend.day:
            self._spend.close()
            self._spend = EmergencySpend(self._directory, day)
        budget = budget_share(plan, max_replicas)
        if not self._spend.take(organization_id, demand.cost_nanousd, budget):
            raise LimitsUnavailable("the emergency budget of the day is used up")
        tokens, parallel = self._take(plan, demand, max_replicas, now_ms)
        taken = _Taken(day, organization_id, demand, tokens, parallel)
        left = tuple(_less(each, demand) for each in standings)
        return LocalReservation(request_id, now_ms, left, taken, self._close)

    def close(self) -> None:
        """Write what was spent today; closing twice is harmless."""
        self._spend.close()

    def _standings(
        self, plan: LayerPlan, demand: Demand, max_replicas: int, now_ms: int
    ) -> tuple[tuple[Standing, ...], Standing | None]:
        """Return where every layer stands before the request, and the first that is short."""
        binding: Standing | None = None
        standings: list[Standing] = []
        for layer in plan.layers:
            if not is_counted(layer):
                standings.append(untouched(layer))
                continue
            amount = _amount(layer, demand)
            standing = self._standing(layer, amount, max_replicas, now_ms)
            standings.append(standing)
            if binding is None and amount > standing.remaining:
                binding = standing
        return tuple(standings), binding

    def _standing(self, layer: Layer, amount: int, max_replicas: int, now_ms: int) -> Standing:
        key = _key(layer)
        if layer.kind is LayerKind.RATE:
            rate = self._rates.get(key) or RateCount()
            interval_us, most = _rate_share(layer, max_replicas)
            remaining = rate.remaining(interval_us, most, now_ms)
            is_short = amount > remaining
            wait_ms = rate.wait_ms(interval_us, most, now_ms) if is_short else rate.reset_ms(now_ms)
            return Standing(layer, remaining, wait_ms, "")
        share = share_of(layer.capacity, max_replicas)
        if layer.kind is LayerKind.PARALLEL:
            return Standing(layer, max(0, share - self._parallel.get(key, 0)), 0, "")
        count = self._rolling.get(key) or RollingCount()
        remaining = share - count.used(now_ms)
        if share < amount <= layer.capacity:
            return Standing(layer, max(0, remaining), NEVER_MS, "")
        missing = amount - remaining if amount > remaining else MAX_AMOUNT
        return Standing(layer, max(0, remaining), count.wait_ms(missing, now_ms), "")

    def _take(
        self, plan: LayerPlan, demand: Demand, max_replicas: int, now_ms: int
    ) -> tuple[tuple[tuple[RollingCount, int], ...], tuple[_Key, ...]]:
        tokens: list[tuple[RollingCount, int]] = []
        parallel: list[_Key] = []
        for layer in filter(is_counted, plan.layers):
            key = _key(layer)
            if layer.kind is LayerKind.RATE:
                interval_us, _ = _rate_share(layer, max_replicas)
                self._rates.setdefault(key, RateCount()).take(interval_us, now_ms)
            elif layer.kind is LayerKind.PARALLEL:
                self._parallel[key] = self._parallel.get(key, 0) + 1
                parallel.append(key)
            else:
                count = self._rolling.setdefault(key, RollingCount())
                slot = count.take(_amount(layer, demand), now_ms)
                if layer.unit is Unit.TOKENS:
                    tokens.append((count, slot))
        return tuple(tokens), tuple(parallel)

    def _close(self, taken: _Taken, tokens: int, cost_nanousd: int) -> None:
        for count, slot in taken.tokens:
            count.correct(slot, tokens - taken.demand.tokens)
        for key in taken.parallel:
            self._parallel[key] -= 1
            if self._parallel[key] == 0:
                del self._parallel[key]
        # What an earlier day spent is nobody's business any more.
        if taken.day == self._spend.day:
            difference = cost_nanousd - taken.demand.cost_nanousd
            self._spend.correct(taken.organization_id, difference)

    def _make_room(self, plan: LayerPlan, now_ms: int) -> None:
        """See that memory stays bounded.

        Raises:
            LimitsUnavailable: Too many subjects are counted: forgetting one would admit too much.
        """
        if self._has_room(plan):
            return
        if now_ms >= self._pruned_at_ms + _PRUNE_MS:
            self._pruned_at_ms = now_ms
            self._rolling = {k: v for k, v in self._rolling.items() if not v.is_over(now_ms)}
            self._rates = {k: v for k, v in self._rates.items() if not v.is_over(now_ms)}
            _log.warning("emergency_counts_full", left=len(self._rolling) + len(self._rates))
        if not self._has_room(plan):
            raise LimitsUnavailable("too many subjects are counted in this process")

    def _has_room(self, plan: LayerPlan) -> bool:
        left = MAX_COUNTS - len(self._rolling) - len(self._rates)
        if left >= len(plan.layers):
            return True
        keys = [_key(each) for each in plan.layers if each.kind in _REMEMBERED and is_counted(each)]
        return sum(key not in self._rolling and key not in self._rates for key in keys) <= left

    def _now_ms(self) -> int:
        self._latest_ms = max(self._latest_ms, self._clock_ms())
        return self._latest_ms

    def _day(self, now_ms: int) -> str:
        return self._calendar.at(Window.DAY, "UTC", now_ms).period_id


def _key(layer: Layer) -> _Key:
    return layer.name, layer.subject_id, layer.reset_generation


def _amount(layer: Layer, demand: Demand) -> int:
    return demand.tokens if layer.unit is Unit.TOKENS else 1


def _rate_share(layer: Layer, max_replicas: int) -> tuple[int, int]:
    """Return one replica's interval, in microseconds, and how many it lets through at once."""
    interval_us = layer.emission_interval_us * max(1, max_replicas)
    return interval_us, share_of(layer.most_at_once, max_replicas)


def _less(standing: Standing, demand: Demand) -> Standing:
    """Return where a layer stands after the request was admitted."""
    if not is_counted(standing.layer):
        return standing
    amount = _amount(standing.layer, demand)
    return standing._replace(remaining=max(0, standing.remaining - amount))
