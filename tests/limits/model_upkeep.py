"""What reaping, correcting, losing and rebuilding must do to the counters."""

from dataplane.domain.limiting import Layer, LayerKind
from dataplane.limits.operations import Outcome
from tests.limits.model_counts import CALENDAR, LEASE_MS, Counter, Counts, Crossing, Entry, State
from tests.limits.plans import amount_of


class Upkeep(Counts):
    """The rules of upkeep; each operation returns what the script must answer."""

    def cross(self, counter: Counter) -> list[Crossing]:
        """Return what a budget that has moved tells; each of 80 and 100 percent once."""
        layer, period = counter
        settled, held = self.balance(layer, period)
        reached = [each for each in (80, 100) if (settled + held) * 100 >= layer.capacity * each]
        news = [each for each in reached if each > self.told.get(counter, 0)]
        if news:
            self.told[counter] = news[-1]
        return [(counter, each, layer.capacity, settled, held) for each in news]

    def _crossed(self, entry: Entry) -> list[Crossing]:
        budgets = [layer for layer in entry.plan.layers if layer.kind is LayerKind.SPEND]
        return [
            crossing for layer in budgets for crossing in self.cross((layer, entry.period(layer)))
        ]

    def _reserved(self, entry: Entry, charged: int | None) -> dict[Layer, int]:
        row = {}
        for layer in [each for each in entry.plan.layers if each.kind in CALENDAR]:
            amount = amount_of(layer, entry.tokens, entry.cost, entry.expected)
            is_charged = layer.kind is LayerKind.SPEND and charged is not None
            row[layer] = charged if is_charged and charged is not None else amount
        return row

    def reap(self, request_id: str, charged: int | None = None) -> list[object]:
        """Return the answer; every budget is charged what it holds, or what the record charges."""
        entry = self.known(request_id)
        if entry is None:
            return [Outcome.GONE]
        if entry.state is State.REAPED:
            return [Outcome.DUPLICATE]
        entry.state = State.REAPED
        self.unreported[request_id] = self.now_ms
        if not entry.row:
            entry.row = self._reserved(entry, charged)
        entry.slots.clear()
        if not self.is_present(entry):
            return [Outcome.OK, []]
        entry.counted |= {
            layer: held if charged is None else charged for layer, held in entry.held.items()
        }
        entry.held.clear()
        return [Outcome.OK, self._crossed(entry)]

    def forget(self, request_id: str) -> Outcome:
        return Outcome.GONE if self.unreported.pop(request_id, None) is None else Outcome.OK

    def maintain(self, node_id: str) -> list[object]:
        """Return the answer; the number of a lease that is taken anew is the script's to choose."""
        if self.owner not in ("", node_id):
            return [Outcome.TAKEN, self.owner]
        self.owner = node_id
        return [Outcome.OK]

    def resign(self, node_id: str) -> Outcome:
        if self.owner != node_id:
            return Outcome.GONE
        self.owner = ""
        return Outcome.OK

    def correct(
        self, counter: Counter, before: tuple[int, int], after: tuple[int, int]
    ) -> list[object]:
        """Set a counter if it reads as `before`; return the answer."""
        settled, held = self.balance(*counter)
        if (settled, held) != before:
            return [Outcome.MOVED]
        more_settled, more_held = self.corrections.get(counter, (0, 0))
        more_settled += after[0] - settled
        self.corrections[counter] = (more_settled, more_held + after[1] - held)
        return [Outcome.OK, self.cross(counter) if counter[0].kind is LayerKind.SPEND else []]

    def raise_to(self, counter: Counter, wanted: int, *, counts_held: bool) -> list[object]:
        """Raise a counter, if what it settled (and holds) does not come to that; return the answer."""
        settled, held = self.balance(*counter)
        if settled + (held if counts_held else 0) >= wanted:
            return [Outcome.MOVED]
        return self.correct(counter, (settled, held), (wanted, held))

    def wipe(self, server_now_ms: int) -> None:
        """Everything in Redis is gone, and what it knew of the time."""
        self.now_ms = server_now_ms
        for entry in self.entries:
            entry.counted.clear()
            entry.held.clear()
            entry.slots.clear()
            if entry.is_known:
                entry.state = State.LOST
        self.tombstones.clear()
        self.unreported.clear()
        self.corrections.clear()
        self.told.clear()
        self.marks.clear()
        self.owner = ""
        self.is_cold = True

    def rebuild(self, request_ids: list[str]) -> list[Crossing]:
        """Begin a new epoch with the ledger's sums and the requests that nodes say are in flight."""
        restored = [self._in_flight(each) for each in request_ids]
        counters = self.counters()
        for entry in self.entries:
            for layer in [each for each in entry.plan.layers if each.kind in CALENDAR]:
                entry.counted.pop(layer, None)
                entry.held.pop(layer, None)
        self.corrections = {each: (self.ledger(each), 0) for each in counters}
        crossings = [
            crossing
            for each in counters
            if each[0].kind is LayerKind.SPEND
            for crossing in self.cross(each)
        ]
        self.epoch += 1
        self.is_cold = False
        for entry, reserved in restored:
            entry.state, entry.epoch, entry.is_restored = State.HELD, self.epoch, True
            self.unreported.pop(entry.request_id, None)
            entry.lease_ms = self.now_ms + LEASE_MS
            for layer, amount in reserved.items():
                self._reserve(entry, layer, amount)
        return crossings

    def _in_flight(self, request_id: str) -> tuple[Entry, dict[Layer, int]]:
        """Return a request with what its node says it holds."""
        entry = self.latest(request_id)
        assert entry is not None
        return entry, {
            layer: amount_of(layer, entry.tokens, entry.cost, entry.expected)
            for layer in entry.plan.layers
            if layer.kind not in (LayerKind.RATE, LayerKind.ROLLING)
        }

    def _reserve(self, entry: Entry, layer: Layer, amount: int) -> None:
        if layer.kind is LayerKind.PARALLEL:
            entry.slots[layer] = self.now_ms + LEASE_MS
        elif layer.kind is LayerKind.SPEND:
            entry.held[layer] = amount
        else:
            entry.counted[layer] = amount
