"""The limiter as lists and sums: what the script must do, written without cleverness."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan, Unit
from dataplane.domain.periods import FOREVER_MS, periods_at
from dataplane.limits.operations import Outcome
from tests.limits.plans import SLOT_MS, WINDOW_MS

LEASE_MS = 30_000


class State(StrEnum):
    HELD = "held"
    REAPED = "reaped"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(slots=True)
class Entry:
    """One admitted request and what it counts as now."""

    request_id: str
    plan: LayerPlan
    admitted_ms: int
    tokens: int
    cost: int
    answer: list[object]
    reserved_tokens: int
    reserved_cost: int
    state: State = State.HELD
    is_request: bool = True
    lease_ms: int = 0
    slots: dict[Layer, int] = field(default_factory=dict)

    @property
    def counts_until_ms(self) -> int:
        return (self.admitted_ms // SLOT_MS) * SLOT_MS + SLOT_MS + WINDOW_MS


def period_of(layer: Layer, now_ms: int) -> str:
    return periods_at(layer.window, layer.time_zone, now_ms).period_id


class Model:
    """Every request ever admitted, and the rules as sums over them."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.entries: list[Entry] = []
        self.tombstones: set[str] = set()

    def see_clock(self, server_now_ms: int) -> None:
        self.now_ms = max(self.now_ms, server_now_ms)

    def find(self, request_id: str) -> Entry | None:
        """Return the entry that still has a reservation."""
        for entry in self.entries:
            if entry.request_id == request_id and entry.state in (State.HELD, State.REAPED):
                return entry
        return None

    def rolling(self, layer: Layer) -> list[tuple[Entry, int]]:
        """Return the entries a rolling layer still counts, with their amounts."""
        return [
            (entry, 1 if layer.unit is Unit.REQUESTS else entry.tokens)
            for entry in self.entries
            if layer in entry.plan.layers and entry.counts_until_ms > self.now_ms
        ]

    def balance(self, layer: Layer) -> tuple[int, int]:
        """Return (settled, held) of a layer now."""
        if layer.kind is LayerKind.ROLLING:
            return sum(amount for _, amount in self.rolling(layer)), 0
        if layer.kind is LayerKind.PARALLEL:
            leases = [entry.slots.get(layer, 0) for entry in self.entries]
            return sum(lease > self.now_ms for lease in leases), 0
        period = period_of(layer, self.now_ms)
        counted = [
            entry
            for entry in self.entries
            if layer in entry.plan.layers and period_of(layer, entry.admitted_ms) == period
        ]
        if layer.kind is LayerKind.SPEND:
            held = sum(entry.cost for entry in counted if entry.state is State.HELD)
            return sum(entry.cost for entry in counted) - held, held
        if layer.unit is Unit.REQUESTS:
            return sum(entry.is_request for entry in counted), 0
        return sum(entry.tokens for entry in counted), 0

    def resets_at_ms(self, layer: Layer) -> int:
        """Return when everything that a layer has counted is back; 0 where time gives nothing back."""
        if layer.kind is LayerKind.PARALLEL:
            return 0
        if layer.kind is not LayerKind.ROLLING:
            end_ms = periods_at(layer.window, layer.time_zone, self.now_ms).end_ms
            return 0 if end_ms == FOREVER_MS else end_ms
        counted = [entry.counts_until_ms for entry, amount in self.rolling(layer) if amount]
        return max(counted, default=0)

    def reset_ms(self, layer: Layer, amount: int) -> int:
        """Return when a layer has room for `amount`, or is empty again if it has room now."""
        if layer.kind is LayerKind.PARALLEL:
            return 0
        if layer.kind is not LayerKind.ROLLING:
            end_ms = periods_at(layer.window, layer.time_zone, self.now_ms).end_ms
            return -1 if end_ms == FOREVER_MS else end_ms - self.now_ms
        counted = self.rolling(layer)
        used = sum(each for _, each in counted)
        if used + amount > layer.capacity >= amount:
            for instant_ms in sorted({entry.counts_until_ms for entry, _ in counted}):
                rest = sum(each for entry, each in counted if entry.counts_until_ms > instant_ms)
                if rest + amount <= layer.capacity:
                    return instant_ms - self.now_ms
        return (self.now_ms // SLOT_MS) * SLOT_MS + SLOT_MS + WINDOW_MS - self.now_ms

    def admit(self, request_id: str, plan: LayerPlan, tokens: int, cost: int) -> list[object]:
        """Return the answer, from the outcome on; `nexts` is always 0 for a fresh binding."""
        if request_id in self.tombstones:
            return [Outcome.RELEASED]
        earlier = self.find(request_id)
        if earlier is not None:
            return [Outcome.DUPLICATE, *earlier.answer]
        pairs: list[int] = []
        binding = None
        for position, layer in enumerate(plan.layers, start=1):
            amount = amount_of(layer, tokens, cost)
            settled, held = self.balance(layer)
            pairs += [max(layer.capacity - settled - held, 0), self.reset_ms(layer, amount)]
            is_short = settled + held + amount > layer.capacity or layer.capacity == 0
            if is_short and not layer.is_shadow and binding is None:
                is_never = amount > layer.capacity or layer.capacity == 0
                is_money = layer.kind is LayerKind.SPEND
                binding = [position, int(is_never), settled if is_money else 0, held]
        if binding is not None:
            return [Outcome.DENY, self.now_ms, 0, pairs, *binding]
        for index, layer in enumerate(plan.layers):
            pairs[2 * index] = max(pairs[2 * index] - amount_of(layer, tokens, cost), 0)
        entry = Entry(
            request_id=request_id,
            plan=plan,
            admitted_ms=self.now_ms,
            tokens=tokens,
            cost=cost,
            answer=[self.now_ms, 0, pairs],
            reserved_tokens=tokens,
            reserved_cost=cost,
            lease_ms=self.now_ms + LEASE_MS,
        )
        for layer in plan.layers:
            if layer.kind is LayerKind.PARALLEL:
                entry.slots[layer] = self.now_ms + LEASE_MS
        self.entries.append(entry)
        return [Outcome.OK, *entry.answer]

    def settle(self, request_id: str, tokens: int, cost: int) -> Outcome:
        def close(entry: Entry) -> None:
            if entry.state is State.HELD:
                entry.tokens = tokens
            entry.cost = cost
            entry.state = State.SETTLED

        return self._close(request_id, close)

    def release(self, request_id: str) -> Outcome:
        def close(entry: Entry) -> None:
            entry.tokens, entry.cost, entry.is_request = 0, 0, False
            entry.state = State.RELEASED

        self.tombstones.add(request_id)
        return self._close(request_id, close)

    def reap(self, request_id: str) -> Outcome:
        entry = self.find(request_id)
        if entry is None:
            return Outcome.GONE
        if entry.state is State.REAPED:
            return Outcome.DUPLICATE
        entry.state = State.REAPED
        entry.slots.clear()
        return Outcome.OK

    def heartbeat(self, request_id: str) -> Outcome:
        entry = self.find(request_id)
        if entry is None or entry.state is not State.HELD:
            return Outcome.GONE
        entry.lease_ms = self.now_ms + LEASE_MS
        for layer, lease_ms in entry.slots.items():
            if lease_ms > self.now_ms:
                entry.slots[layer] = self.now_ms + LEASE_MS
        return Outcome.OK

    def reservations(self) -> set[str]:
        kept = {e.request_id for e in self.entries if e.state in (State.HELD, State.REAPED)}
        return kept | self.tombstones

    def leases(self) -> dict[str, int]:
        return {e.request_id: e.lease_ms for e in self.entries if e.state is State.HELD}

    def _close(self, request_id: str, close: Callable[[Entry], None]) -> Outcome:
        entry = self.find(request_id)
        if entry is None:
            return Outcome.GONE
        close(entry)
        entry.slots.clear()
        return Outcome.OK


def amount_of(layer: Layer, tokens: int, cost: int) -> int:
    if layer.unit is Unit.TOKENS:
        return tokens
    return cost if layer.unit is Unit.SPEND else 1
