"""What the counters hold, as sums over every request that was ever admitted.

The model remembers every request ever admitted with what it counts as, now, in each of its layers, and
works out everything else from there, each time anew. What a reconcile or a rebuild set a counter to
stands beside it as a correction.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan
from dataplane.domain.periods import FOREVER_MS, periods_at
from tests.limits.plans import SLOT_MS, WINDOW_MS

LEASE_MS = 25_000
# A slot whose request nobody settles, releases or reaps is taken for so long after its lease.
SLOT_GRACE_MS = 3_600_000
CALENDAR = (LayerKind.PERIOD, LayerKind.SPEND)
# A counter of days, months or all time: its layer and the period.
Counter = tuple[Layer, str]
# What a budget tells when it is crossed: its counter, percent, capacity, settled, held.
Crossing = tuple[Counter, int, int, int, int]


class State(StrEnum):
    HELD = "held"
    REAPED = "reaped"
    SETTLED = "settled"
    RELEASED = "released"
    LOST = "lost"


@dataclass(slots=True)
class Entry:
    """One admitted request.

    `counted` and `held` say what each layer counts it as; `row` what its row in the ledger says, per
    layer of days, months and all time; `due_ms` until when it made each rate busy. Its node closes it once, whatever Redis still knows of it.
    """

    request_id: str
    plan: LayerPlan
    admitted_ms: int
    epoch: int
    tokens: int
    cost: int
    expected: int | None = None
    answer: list[object] = field(default_factory=list)
    counted: dict[Layer, int] = field(default_factory=dict)
    held: dict[Layer, int] = field(default_factory=dict)
    slots: dict[Layer, int] = field(default_factory=dict)
    row: dict[Layer, int] = field(default_factory=dict)
    state: State = State.HELD
    due_ms: dict[Layer, int] = field(default_factory=dict)
    lease_ms: int = 0
    is_restored: bool = False
    is_closed: bool = False

    @property
    def counts_until_ms(self) -> int:
        return (self.admitted_ms // SLOT_MS) * SLOT_MS + SLOT_MS + WINDOW_MS

    @property
    def is_known(self) -> bool:
        """Whether Redis has a record of it."""
        return self.state in (State.HELD, State.REAPED)

    def period(self, layer: Layer) -> str:
        return period_of(layer, self.admitted_ms)


def period_of(layer: Layer, now_ms: int) -> str:
    return periods_at(layer.window, layer.time_zone, now_ms).period_id


class Counts:
    """Every request ever admitted, and what each layer makes of them."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.entries: list[Entry] = []
        self.tombstones: set[str] = set()
        self.unreported: dict[str, int] = {}
        self.owner = ""
        self.corrections: dict[Counter, tuple[int, int]] = {}
        self.told: dict[Counter, int] = {}
        self.epoch = 1
        self.is_cold = False
        self.marks: dict[tuple[str, str], tuple[str, int, bool]] = {}

    def see_clock(self, server_now_ms: int) -> None:
        self.now_ms = max(self.now_ms, server_now_ms)

    def latest(self, request_id: str) -> Entry | None:
        """Return the last admission of a request, whatever became of it."""
        entries = [each for each in self.entries if each.request_id == request_id]
        return entries[-1] if entries else None

    def known(self, request_id: str) -> Entry | None:
        """Return the entry of which Redis has a record, of whatever epoch."""
        entry = self.latest(request_id)
        return entry if entry is not None and entry.is_known else None

    def find(self, request_id: str) -> Entry | None:
        """Return the entry of which Redis has a record of the present epoch."""
        entry = self.known(request_id)
        return entry if entry and self.is_present(entry) else None

    def is_present(self, entry: Entry) -> bool:
        return entry.epoch == self.epoch and not self.is_cold

    def reservations(self) -> set[str]:
        return {each.request_id for each in self.entries if each.is_known} | self.tombstones

    def leases(self) -> dict[str, int]:
        return {e.request_id: e.lease_ms for e in self.entries if e.state is State.HELD}

    def overdue(self) -> list[str]:
        leases = sorted((lease_ms, name) for name, lease_ms in self.leases().items())
        return [name for lease_ms, name in leases if lease_ms <= self.now_ms]

    def rolling(self, layer: Layer) -> list[tuple[Entry, int]]:
        """Return the entries a rolling layer still counts, with their amounts."""
        return [
            (entry, entry.counted[layer])
            for entry in self.entries
            if layer in entry.counted and entry.counts_until_ms > self.now_ms
        ]

    def arrival_us(self, layer: Layer) -> int:
        """Return when the next request of a rate is due if each came when due, not before now."""
        arrival = 0
        for entry in self.entries:
            if layer in entry.counted:
                arrival = max(arrival, entry.admitted_ms * 1000) + layer.emission_interval_us
        return max(arrival, self.now_ms * 1000)

    def ahead_us(self, layer: Layer) -> int:
        """Return by how much a rate has been used ahead of time."""
        return self.arrival_us(layer) - self.now_ms * 1000

    def balance(self, layer: Layer, period: str | None = None) -> tuple[int, int]:
        """Return (settled, held) of a layer, now or in one of its periods."""
        if layer.kind is LayerKind.RATE:
            return -(-self.ahead_us(layer) // max(1, layer.emission_interval_us)), 0
        if layer.kind is LayerKind.ROLLING:
            return sum(amount for _, amount in self.rolling(layer)), 0
        if layer.kind is LayerKind.PARALLEL:
            return sum(self.has_slot(entry, layer) for entry in self.entries), 0
        period = period or period_of(layer, self.now_ms)
        entries = [each for each in self.entries if layer in each.counted or layer in each.held]
        entries = [each for each in entries if each.period(layer) == period]
        settled, held = self.corrections.get((layer, period), (0, 0))
        settled += sum(each.counted.get(layer, 0) for each in entries)
        return settled, held + sum(each.held.get(layer, 0) for each in entries)

    def has_slot(self, entry: Entry, layer: Layer) -> bool:
        """Tell whether a request has a slot of a parallel layer, by itself or for want of a reaper."""
        return layer in entry.slots and entry.slots[layer] + SLOT_GRACE_MS > self.now_ms

    def room(self, layer: Layer) -> int:
        """Return how much fits, in the layer's unit; below 0 when it is exceeded."""
        if layer.kind is LayerKind.RATE:
            most_us = layer.most_at_once * layer.emission_interval_us
            return (most_us - self.ahead_us(layer)) // layer.emission_interval_us
        return layer.capacity - sum(self.balance(layer))

    def counters(self) -> dict[Counter, int]:
        """Return every counter of days, months and all time that a request moved, and an instant of it."""
        return {
            (layer, entry.period(layer)): entry.admitted_ms
            for entry in self.entries
            for layer in entry.plan.layers
            if layer.kind in CALENDAR
        }

    def ledger(self, counter: Counter) -> int:
        """Return the sum of the rows of a period."""
        layer, period = counter
        return sum(
            entry.row.get(layer, 0) for entry in self.entries if entry.period(layer) == period
        )

    def resets_at_ms(self, layer: Layer) -> int:
        """Return when everything that a layer has counted is back; 0 where time gives nothing back."""
        if layer.kind is LayerKind.PARALLEL:
            return 0
        if layer.kind is LayerKind.RATE:
            return -(-self.arrival_us(layer) // 1000) if self.ahead_us(layer) else 0
        if layer.kind in CALENDAR:
            end_ms = periods_at(layer.window, layer.time_zone, self.now_ms).end_ms
            return 0 if end_ms == FOREVER_MS else end_ms
        counted = [entry.counts_until_ms for entry, amount in self.rolling(layer) if amount]
        return max(counted, default=0)

    def reset_ms(self, layer: Layer, amount: int) -> int:
        """Return when a layer has room for `amount`, or is empty again if it has room now."""
        if layer.kind is LayerKind.PARALLEL:
            return 0
        if layer.kind is LayerKind.RATE:
            missing = 0 if self.room(layer) >= 1 else 1 - layer.most_at_once
            return -(-(self.ahead_us(layer) + missing * layer.emission_interval_us) // 1000)
        if layer.kind in CALENDAR:
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
