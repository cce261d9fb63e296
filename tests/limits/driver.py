"""The operations of the limiter's script as plain calls."""

from collections.abc import Callable

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan, Unit
from dataplane.domain.revocations import Revocation
from dataplane.domain.snapshot import Position
from dataplane.limits import counters
from dataplane.limits.counters import BoundPlan
from dataplane.limits.marks import Mark
from dataplane.limits.operations import (
    NO_FENCE,
    Admit,
    Answer,
    Cancel,
    Extend,
    Find,
    Heartbeat,
    Operation,
    Outcome,
    Reap,
    Release,
    ResetClock,
    Settle,
)
from dataplane.limits.upkeep import (
    Correct,
    Forget,
    Maintain,
    OpenEpoch,
    Overdue,
    Raise,
    Resign,
    Restore,
    Unreported,
)
from tests.limits.callers import Caller
from tests.limits.plans import SLOT_MS, WINDOW_MS, amount_of
from tests.limits.script_runner import ScriptRunner

META = '{"note": "é"}'.encode()
Case = Callable[["Driver"], None]
_CODES = {
    (LayerKind.RATE, Unit.REQUESTS): counters.RATE,
    (LayerKind.ROLLING, Unit.REQUESTS): counters.ROLLING_REQUESTS,
    (LayerKind.ROLLING, Unit.TOKENS): counters.ROLLING_TOKENS,
    (LayerKind.PERIOD, Unit.REQUESTS): counters.PERIOD_REQUESTS,
    (LayerKind.PERIOD, Unit.TOKENS): counters.PERIOD_TOKENS,
    (LayerKind.SPEND, Unit.SPEND): counters.SPEND,
    (LayerKind.PARALLEL, Unit.PARALLEL): counters.PARALLEL,
}
# What a record names: rates and rolling requests are never given back.
_HELD = set(_CODES.values()) - {counters.RATE, counters.ROLLING_REQUESTS} | {counters.SOFT_SPEND}


def code_of(layer: Layer) -> int:
    """Return the kind of counter as the script knows it."""
    is_soft = layer.kind is LayerKind.SPEND and not layer.is_hard
    return counters.SOFT_SPEND if is_soft else _CODES[layer.kind, layer.unit]


class Driver(ScriptRunner):
    """Every operation, each in a call of its own."""

    def admission(
        self,
        request_id: str,
        plan: LayerPlan,
        tokens: int = 1,
        cost: int = 1,
        *,
        expected: int | None = None,
        bound: BoundPlan | None = None,
        not_after_ms: int | None = None,
        caller: Caller | None = None,
    ) -> Admit:
        """Return an admit that is ready to go, and remember its keys."""
        position, principal = caller or (None, None)
        bound = bound or self.bind(plan, principal=principal)
        self._bound.setdefault(request_id, bound)
        deadline = self.server_now_ms + 100 if not_after_ms is None else not_after_ms
        return Admit(
            request_id,
            plan,
            bound,
            tokens,
            cost,
            META,
            deadline,
            expected,
            position=position,
            principal=principal,
        )

    def admit(
        self,
        request_id: str,
        plan: LayerPlan,
        tokens: int = 1,
        cost: int = 1,
        *,
        expected: int | None = None,
        bound: BoundPlan | None = None,
        not_after_ms: int | None = None,
        epoch: str | None = None,
        caller: Caller | None = None,
    ) -> Answer:
        operation = self.admission(
            request_id,
            plan,
            tokens,
            cost,
            expected=expected,
            bound=bound,
            not_after_ms=not_after_ms,
            caller=caller,
        )
        return self.call(operation, epoch=epoch).answers[0]

    def marking(self, *revocations: Revocation) -> Mark:
        return Mark(revocations)

    def mark(self, *revocations: Revocation) -> Answer:
        return self.ask(self.marking(*revocations))

    def marks(self) -> dict[tuple[str, str], tuple[str, int, bool]]:
        """Return what is marked: (kind, id) → epoch, revision, whether streams end."""
        prefix, found = self.keyspace.mark("", "").removesuffix(":"), {}
        for key in self.redis.scan_iter(f"{prefix}*", count=1000):
            kind, _, subject_id = key.decode().removeprefix(prefix).partition(":")
            text = self.redis.get(key)
            assert isinstance(text, bytes)
            revision, ends_streams, epoch = text.decode().split(" ", 2)
            found[kind, subject_id] = (epoch, int(revision), ends_streams == "1")
        return found

    def settle(self, request_id: str, tokens: int = 1, cost: int = 1) -> Answer:
        return self.ask(Settle(request_id, tokens, cost, self._bound.get(request_id)))

    def release(self, request_id: str) -> Answer:
        return self.ask(Release(request_id, self._bound.get(request_id)))

    def cancel(self, request_id: str, admitted_at_ms: int) -> Answer:
        return self.ask(Cancel(request_id, self._bound[request_id], admitted_at_ms))

    def extend(self, request_id: str, expected: int, position: Position | None = None) -> Answer:
        return self.ask(Extend(request_id, self._bound[request_id], expected, position))

    def heartbeat(self, request_id: str) -> Answer:
        return self.ask(Heartbeat(request_id, self._bound[request_id]))

    def reap(self, request_id: str, fence: int = NO_FENCE, charged: int | None = None) -> Answer:
        """Reap as the maintenance node does, which knows no plan."""
        found = self.ask(Find(request_id))
        keys = found[2] if found[0] == Outcome.OK else []
        return self.ask(Reap(request_id, keys, fence, charged))

    def forget(self, request_id: str) -> Answer:
        return self.ask(Forget(request_id))

    def maintain(self, node_id: str, lease_ms: int = 15_000) -> Answer:
        return self.ask(Maintain(node_id, lease_ms))

    def resign(self, node_id: str) -> Answer:
        return self.ask(Resign(node_id))

    def lapse(self) -> None:
        """Let the maintenance lease run out, which ends by the server's own time."""
        self.redis.delete(self.keyspace.maintenance)

    def overdue(self, limit: int = 200) -> list[str]:
        """Return the requests whose lease has run out, oldest first."""
        return self._listed(Overdue(limit))

    def unreported(self, limit: int = 200) -> list[str]:
        """Return the reaped requests that nobody has reported, oldest first."""
        return self._listed(Unreported(limit))

    def correct(
        self,
        layer: Layer,
        before: tuple[int, int],
        after: tuple[int, int],
        *,
        period_ms: int | None = None,
        fence: int = NO_FENCE,
    ) -> Answer:
        """Set the counter that a layer has at `period_ms` (now) from `before` to `after`."""
        at_ms = max(self.limiter_now_ms, self.server_now_ms) if period_ms is None else period_ms
        return self.ask(self.correction(layer, before, after, at_ms, fence))

    def correction(
        self,
        layer: Layer,
        before: tuple[int, int],
        after: tuple[int, int],
        period_ms: int,
        fence: int = NO_FENCE,
    ) -> Correct:
        return Correct(
            self.counter_key(layer, period_ms),
            code_of(layer),
            before[0],
            after[0],
            before[1],
            after[1],
            self.ends_ms(layer, period_ms),
            fence,
            layer.capacity if layer.kind is LayerKind.SPEND else 0,
        )

    def raise_to(
        self,
        layer: Layer,
        settled: int,
        *,
        counts_held: bool = True,
        period_ms: int | None = None,
        fence: int = NO_FENCE,
    ) -> Answer:
        """Raise the counter that a layer has at `period_ms` (now) to `settled`."""
        at_ms = max(self.limiter_now_ms, self.server_now_ms) if period_ms is None else period_ms
        return self.ask(
            Raise(
                self.counter_key(layer, at_ms),
                code_of(layer),
                settled,
                counts_held,
                self.ends_ms(layer, at_ms),
                fence,
                layer.capacity if layer.kind is LayerKind.SPEND else 0,
            )
        )

    def holdings(
        self,
        plan: LayerPlan,
        tokens: int,
        cost: int,
        *,
        expected: int | None = None,
        at_ms: int | None = None,
    ) -> list[int | str]:
        """Return what a request admitted at `at_ms` (now) holds, in the form of a record."""
        flat: list[int | str] = []
        for layer in plan.layers:
            code = code_of(layer)
            amount = amount_of(layer, tokens, cost, expected)
            detail, ends_ms = 0, self.ends_ms(layer, at_ms)
            if code == counters.ROLLING_TOKENS:
                detail = (self.limiter_now_ms if at_ms is None else at_ms) // SLOT_MS
                ends_ms = (detail + 1) * SLOT_MS + WINDOW_MS
            elif layer.kind is LayerKind.SPEND:
                detail = -layer.capacity if layer.is_shadow else layer.capacity
            if code in _HELD:
                flat += [code, self.counter_key(layer, at_ms), amount, detail, ends_ms]
        return flat

    def restore(
        self,
        request_id: str,
        holdings: list[int | str],
        epoch: str,
        fence: int = NO_FENCE,
        admitted_ms: int | None = None,
    ) -> Answer:
        at_ms = self.limiter_now_ms if admitted_ms is None else admitted_ms
        return self.ask(Restore(request_id, holdings, META, at_ms, epoch, fence))

    def open_epoch(self, epoch: str, fence: int = NO_FENCE) -> Answer:
        """Open an epoch; later admits carry it."""
        answer = self.ask(OpenEpoch(epoch, fence))
        if answer[0] == Outcome.OK:
            self.epoch = epoch
        return answer

    def reset_clock(self, fence: int = NO_FENCE) -> Answer:
        return self.ask(ResetClock(fence))

    def _listed(self, operation: Operation) -> list[str]:
        answer = self.ask(operation)
        assert answer[:2] == [Outcome.OK, self.limiter_now_ms]
        return list(answer[2])
