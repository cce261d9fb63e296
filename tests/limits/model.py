"""The limiter as lists and sums: what the script must do, written without cleverness."""

from collections.abc import Callable

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan, Unit
from dataplane.domain.revocations import Revocation, overrules
from dataplane.limits.operations import Outcome
from tests.limits.callers import Caller, subjects_of
from tests.limits.model_counts import CALENDAR, LEASE_MS, Entry, State
from tests.limits.model_upkeep import Upkeep
from tests.limits.plans import amount_of


class Model(Upkeep):
    """The rules of requests; each operation returns what the script must answer."""

    def admit(
        self,
        request_id: str,
        plan: LayerPlan,
        tokens: int,
        cost: int,
        expected: int | None = None,
        caller: Caller | None = None,
    ) -> list[object]:
        """Return the answer, from the outcome on; `nexts` is always 0 for a fresh binding."""
        revoked = self._revoked(caller)
        if self.is_cold:
            return revoked or [Outcome.COLD]
        if request_id in self.tombstones:
            return [Outcome.RELEASED]
        earlier = self.known(request_id)
        if earlier is not None and self.is_present(earlier):
            return [Outcome.DUPLICATE, *earlier.answer]
        if revoked:
            return revoked
        pairs: list[int] = []
        binding = None
        for position, layer in enumerate(plan.layers, start=1):
            amount, room = amount_of(layer, tokens, cost, expected), self.room(layer)
            pairs += [max(room, 0), self.reset_ms(layer, amount)]
            if (amount > room or layer.capacity == 0) and not layer.is_shadow and binding is None:
                is_never = layer.capacity == 0 or amount > max(layer.capacity, layer.most_at_once)
                spent = self.balance(layer) if layer.kind is LayerKind.SPEND else (0, 0)
                binding = [position, int(is_never), *spent]
        if binding is not None:
            return [Outcome.DENY, self.now_ms, 0, pairs, *binding]
        entry = Entry(request_id, plan, self.now_ms, self.epoch, tokens, cost, expected)
        entry.lease_ms = self.now_ms + LEASE_MS
        is_in_time = {layer: room > 0 for layer, room in zip(plan.layers, pairs[::2], strict=True)}
        for layer in plan.layers:
            # A shadow rate that would refuse a request does not count it.
            if layer.kind is not LayerKind.RATE or is_in_time[layer]:
                self._reserve(entry, layer, amount_of(layer, tokens, cost, expected))
        if earlier is not None:
            earlier.state = State.LOST
            earlier.slots.clear()
            self.unreported.pop(request_id, None)
        self.entries.append(entry)
        for index, layer in enumerate(plan.layers):
            amount = amount_of(layer, tokens, cost, expected)
            pairs[2 * index] = max(pairs[2 * index] - amount, 0)
            if layer.kind is LayerKind.RATE and is_in_time[layer]:
                pairs[2 * index + 1] = -(-self.ahead_us(layer) // 1000)
                entry.due_ms[layer] = self.now_ms + pairs[2 * index + 1]
        entry.answer = [self.now_ms, 0, pairs]
        return [Outcome.OK, *entry.answer]

    def settle(self, request_id: str, tokens: int, cost: int) -> list[object]:
        """Return the answer. Whether Redis knows the request or not, the ledger gets its row."""

        def close(entry: Entry) -> None:
            for layer in [*entry.counted, *entry.held]:
                if layer.unit is not Unit.REQUESTS and not _is_frozen(entry, layer):
                    entry.counted[layer] = amount_of(layer, tokens, cost)
            entry.held.clear()
            entry.state = State.SETTLED

        self._write_row(request_id, (tokens, cost))
        return self._close(request_id, close)

    def release(self, request_id: str) -> Outcome:
        def close(entry: Entry) -> None:
            for layer in entry.counted:
                is_kept = layer.kind is LayerKind.RATE or (
                    layer.kind is LayerKind.ROLLING and layer.unit is Unit.REQUESTS
                )
                if not is_kept and not _is_frozen(entry, layer):
                    entry.counted[layer] = 0
            entry.held.clear()
            entry.state = State.RELEASED

        self._write_row(request_id, None)
        # Nobody waits for this answer, so it tells of no budget: the next settlement does.
        told = dict(self.told)
        outcome = self._close(request_id, close)[0]
        self.told = told
        self.tombstones.add(request_id)
        assert isinstance(outcome, Outcome)
        return outcome

    def cancel(self, request_id: str, admitted_ms: int) -> Outcome:
        """Return the outcome: as if that admission had never been asked for."""
        entry = self.known(request_id)
        if entry is None or entry.state is not State.HELD or entry.admitted_ms != admitted_ms:
            return Outcome.GONE
        entry.state, entry.is_closed = State.LOST, True
        entry.slots.clear()
        if not self.is_present(entry):
            return Outcome.GONE
        entry.held.clear()
        for layer in list(entry.counted):
            if not _is_frozen(entry, layer) and self._takes_back(entry, layer):
                del entry.counted[layer]
        return Outcome.OK

    def _takes_back(self, entry: Entry, layer: Layer) -> bool:
        """Tell whether a layer can do as if an admission had not come."""
        if layer.kind is not LayerKind.RATE:
            return True
        if layer.is_shadow or entry.is_restored:
            return False
        is_last = [each for each in self.entries if layer in each.counted][-1] is entry
        before_us = (entry.due_ms[layer] - 1) * 1000 - layer.emission_interval_us
        return is_last or before_us >= self.now_ms * 1000

    def mark(self, revocation: Revocation) -> None:
        position = revocation.config_epoch, revocation.revision
        if self.marks.get(revocation.subject, ("", 0, False))[:2] < position:
            self.marks[revocation.subject] = (*position, revocation.terminates)

    def _revoked(self, caller: Caller | None) -> list[object]:
        """Return what a caller is told whose node has not heard of its revocation; else nothing."""
        if caller is None:
            return []
        position, principal = caller
        for place, subject in enumerate(subjects_of(principal), start=1):
            if subject in self.marks:
                epoch, revision, terminates = self.marks[subject]
                there = position.config_epoch, position.revision
                if overrules(subject[0], epoch, revision, *there):
                    return [Outcome.REVOKED, place, epoch, revision, int(terminates)]
        return []

    def extend(self, request_id: str, expected: int, caller: Caller | None = None) -> list[object]:
        entry = self.find(request_id)
        if entry is None or entry.state is not State.HELD:
            return [Outcome.GONE]
        revoked = self._revoked(caller)
        if revoked and revoked[-1]:
            return revoked
        more = {
            layer: expected - held
            for layer, held in entry.held.items()
            if not layer.is_hard and expected > held
        }
        for layer, amount in more.items():
            used = sum(self.balance(layer, entry.period(layer)))
            if used + amount > layer.capacity and not layer.is_shadow:
                return [Outcome.DENY]
        for layer in more:
            entry.held[layer] = expected
        if more:
            entry.expected = expected
        return [Outcome.OK]

    def heartbeat(self, request_id: str) -> Outcome:
        entry = self.find(request_id)
        if entry is None or entry.state is not State.HELD:
            return Outcome.GONE
        entry.lease_ms = self.now_ms + LEASE_MS
        for layer in entry.slots:
            if self.has_slot(entry, layer):
                entry.slots[layer] = self.now_ms + LEASE_MS
        return Outcome.OK

    def _close(self, request_id: str, close: Callable[[Entry], None]) -> list[object]:
        entry = self.known(request_id)
        if entry is None:
            return [Outcome.GONE]
        entry.slots.clear()
        self.unreported.pop(request_id, None)
        if not self.is_present(entry):
            entry.state = State.LOST
            return [Outcome.GONE]
        close(entry)
        return [Outcome.OK, self._crossed(entry)]

    def _write_row(self, request_id: str, took: tuple[int, int] | None) -> None:
        """Its node says, once, what a request took; None for one that was given back."""
        entry = self.latest(request_id)
        if entry is not None and not entry.is_closed:
            entry.is_closed = True
            layers = [layer for layer in entry.plan.layers if layer.kind in CALENDAR]
            entry.row = {} if took is None else {each: amount_of(each, *took) for each in layers}


def _is_frozen(entry: Entry, layer: Layer) -> bool:
    """Tell whether a rolling layer no longer takes back what a request counted in it.

    The counters of a request that was restored begin empty: what it would give back is not there.
    """
    return entry.is_restored and layer.kind is LayerKind.ROLLING
