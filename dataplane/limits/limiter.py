"""Admits requests against all their layers at once, and settles what they took.

Fail-closed: while Redis cannot be asked, or its counters wait for being rebuilt, nothing is admitted
(`LimitsUnavailable`). Requests in flight go on, and what they took is written when Redis is back.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Self

from dataplane.changes import Changes
from dataplane.domain.breaker import BreakerState
from dataplane.domain.denials import closed_denial
from dataplane.domain.limiting import (
    Demand,
    Denied,
    LayerPlan,
    LimitsUnavailable,
)
from dataplane.domain.principals import Principal
from dataplane.domain.quotas import LayerBalance
from dataplane.domain.revocations import Revocation
from dataplane.domain.snapshot import Position
from dataplane.limits.batcher import Batcher, ignore_crossing
from dataplane.limits.connection import TIMEOUT_SECONDS, RedisConnection
from dataplane.limits.counters import DEFAULT_HASH_TAG, LEASE_MS, Binder, Keyspace
from dataplane.limits.crossings import Crossing
from dataplane.limits.marks import Marks, overruling
from dataplane.limits.operations import (
    Admit,
    Answer,
    Balance,
    Find,
    Heartbeat,
    Operation,
    Outcome,
    Reap,
    Release,
    Settle,
)
from dataplane.limits.pending import ADMIT_SECONDS
from dataplane.limits.reservation import Held, Reservation, denial_of
from dataplane.limits.script import Script, limiter_script
from dataplane.limits.target import Target

# A third of a lease: two heartbeats may be lost before a slot is given away.
HEARTBEAT_SECONDS: Final = LEASE_MS / 3000
# A request younger than this is left to the next round: its lease outlasts it.
_YOUNG_SECONDS: Final = HEARTBEAT_SECONDS / 2
# So many reservations are queued for renewal before other work gets its turn.
_HEARTBEATS_A_TURN: Final = 200
# For calls that no request waits on; longer than a breaker takes to close again.
PATIENCE_SECONDS: Final = 5.0


class Limiter:
    """The limits of one data-plane process; make one with `connect`."""

    def __init__(self, batcher: Batcher, binder: Binder) -> None:
        """Put the parts together; `connect` is the way in."""
        self._batcher = batcher
        self._binder = binder
        self._loop = asyncio.get_running_loop()
        self._active: dict[str, Reservation] = {}
        self._marks = Marks(batcher.write, self._loop.time)
        batcher.on_new_epoch = self._marks.renew
        self._heartbeat = asyncio.create_task(self._beat(), name="limits-heartbeat")

    @classmethod
    async def connect(
        cls,
        redis_url: str | Target,
        *,
        hash_tag: str = DEFAULT_HASH_TAG,
        script: Script | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_crossing: Callable[[Crossing], None] = ignore_crossing,
    ) -> Self:
        """Return a limiter on `redis_url` (redis://, rediss:// or unix://), or wherever a target says.

        It does not fail when Redis is away or cold: `is_available` turns true when its counters can
        be asked. It never opens a counter epoch itself: that is for whoever rebuilds them.

        Args:
            redis_url: Where the counters are; may hold a password.
            hash_tag: Sets key spaces on one server apart.
            script: Another text than production's, for tests.
            timeout_seconds: Of each connect and each call.
            on_crossing: Called from the event loop with each budget that a settlement of this
                process brought to 80 or 100 percent; one whose answer was lost is not told.

        Raises:
            ValueError: The URL cannot be understood.
        """
        keyspace, binder = Keyspace(hash_tag), Binder(Keyspace(hash_tag))
        connection = RedisConnection(
            redis_url, keyspace, script or limiter_script(), timeout_seconds
        )

        def rebind(operation: Admit, now_ms: int) -> None:
            operation.bound = binder.bind(operation.plan, now_ms, operation.principal)

        batcher = Batcher(connection, keyspace, rebind, on_crossing)
        await batcher.start()
        return cls(batcher, binder)

    @property
    def is_available(self) -> bool:
        """Tell whether admits are being asked of Redis, for readiness.

        True without traffic too: Redis is asked and looked at every second.
        """
        return bool(self._batcher.availability)

    @property
    def is_cold(self) -> bool:
        """Tell whether the counters wait for being rebuilt, as last seen."""
        return self._batcher.availability.is_cold

    @property
    def available_since(self) -> float:
        """When the last outage ended, or this limiter began; by the loop's clock in seconds.

        While there is an outage, it still tells of the one before: ask `is_available` first.
        """
        return self._batcher.availability.since

    @property
    def changes(self) -> Changes:
        """Noted whenever `is_available` or `is_cold` may have changed."""
        return self._batcher.availability.changes

    @property
    def state(self) -> BreakerState:
        """The state of the breaker, which says nothing about cold counters."""
        return self._batcher.availability.breaker.state

    @property
    def queued(self) -> int:
        """The number of operations that Redis has not answered yet."""
        return self._batcher.queued

    @property
    def dropped(self) -> int:
        """The number of operations given up since the start; the ledger still has them."""
        return self._batcher.dropped

    @property
    def clock_behind_ms(self) -> int:
        """How far the server's clock is behind limiter time; above 60,000 is an alarm."""
        return self._batcher.clock.behind_ms

    async def reserve(
        self,
        request_id: str,
        plan: LayerPlan,
        demand: Demand,
        meta: bytes,
        on_late_undo: Callable[[], None] | None = None,
        position: Position | None = None,
        principal: Principal | None = None,
    ) -> Reservation:
        """Reserve `demand` from every layer of `plan`, or from none.

        Ends within 100 ms. A caller that is cancelled meanwhile reserves nothing in the
        end: what was taken is released in the background.

        Args:
            request_id: Made by this data plane; asking again with it counts once.
            plan: The request's layers.
            demand: The most it can take.
            meta: UTF-8 text for whoever finds the reservation after this process died.
            on_late_undo: Called from the event loop when nothing was reserved for this caller in the
                end, but others may have found it reserved for so long that they took this process
                for dead, and charged and reported it: it was cut off from Redis for longer than a
                lease. No more is charged by then, or will be when Redis is back.
            position: The configuration by which the caller was let in.
            principal: Who calls, always the same of one plan. Without both, it does not matter
                whether they were revoked.

        Raises:
            Denied: A layer was short; no counter has moved.
            Overruled: The caller was revoked, and that configuration does not say so; no counter has
                moved.
            LimitsUnavailable: Redis did not answer in time.
        """
        if plan.closed_layer is not None:
            raise Denied(closed_denial(plan.closed_layer))
        bound = self._binder.bind(plan, self._now_ms(), principal)
        operation = Admit(
            request_id,
            plan,
            bound,
            demand.tokens,
            demand.cost_nanousd,
            meta,
            expected_nanousd=demand.expected_nanousd,
            on_late_undo=on_late_undo,
            position=position,
            principal=principal,
        )
        future = self._batcher.admit(operation)
        try:
            answer = await future
        except asyncio.CancelledError:
            if _is_admitted(future):
                self._batcher.undo(operation)
            raise
        if answer[0] == Outcome.DENY:
            raise Denied(denial_of(plan, operation.bound, answer))
        if answer[0] == Outcome.REVOKED and principal is not None:
            raise overruling(principal, answer)
        reservation = Reservation(
            operation, answer, self._loop.time(), self._close, self._ask_at_once
        )
        self._active[request_id] = reservation
        return reservation

    def mark_revoked(self, revocation: Revocation) -> None:
        """Tell the other nodes by Redis that something was revoked; idempotent, and waits for nothing.

        While Redis is away the newest 10,000 are kept and written when it is back; those of the last
        seven days also when it was emptied.
        """
        self._marks.note(revocation)

    @property
    def unwritten_marks(self) -> int:
        """The number of revocations that Redis is not known to have."""
        return len(self._marks)

    def in_flight(self) -> list[Held]:
        """Return what requests hold that are neither settled nor released, for a rebuild."""
        return [each.held() for each in self._active.values() if each.is_open]

    async def forfeit(
        self,
        request_id: str,
        charged_nanousd: int | None = None,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Charge a reservation left by a process that died.

        Idempotent. A true figure that comes within the hour still corrects it.

        Args:
            request_id: The request.
            charged_nanousd: What its usage record charges; None: what each budget holds.
            deadline_seconds: How long it waits for each of two answers.
            organization_id: Whose it was; it matters where several servers count.

        Returns:
            Whether there was a reservation.

        Raises:
            LimitsUnavailable: No answer in time; it may be repeated.
        """
        keys = await self._keys_of(request_id, deadline_seconds)
        if keys is None:
            return False
        operation = Reap(request_id, keys, charged_nanousd=charged_nanousd)
        return _was_found(await self._batcher.ask(operation, deadline_seconds))

    async def settle_again(
        self,
        request_id: str,
        tokens: int,
        cost_nanousd: int,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Settle a request of a former process from its record; idempotent.

        Its organization matters where several servers count.

        Returns:
            Whether there was a reservation; false means that it was settled before.

        Raises:
            LimitsUnavailable: No answer in time; it may be repeated.
        """
        keys = await self._keys_of(request_id, deadline_seconds)
        if keys is None:
            return False
        operation = Settle(request_id, tokens, cost_nanousd, keys=keys)
        return _was_found(await self._batcher.ask(operation, deadline_seconds))

    async def release_again(
        self,
        request_id: str,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Give back what a former process reserved and released; idempotent.

        Its organization matters where several servers count.

        Returns:
            Whether there was a reservation; false means that it was given back before.

        Raises:
            LimitsUnavailable: No answer in time; it may be repeated.
        """
        keys = await self._keys_of(request_id, deadline_seconds)
        if keys is None:
            return False
        operation = Release(request_id, keys=keys)
        return _was_found(await self._batcher.ask(operation, deadline_seconds))

    async def balances(
        self, plan: LayerPlan, deadline_seconds: float = PATIENCE_SECONDS
    ) -> tuple[LayerBalance, ...]:
        """Return what every layer of `plan` has counted, read at one instant.

        Raises:
            LimitsUnavailable: No answer in time, or the counters are cold.
        """
        answer: Answer = [Outcome.STALE]
        for _ in range(2):
            if self.is_cold:
                raise LimitsUnavailable("the counters are being rebuilt")
            # Twice: the answer to the first brings the clock that a stale period lacked.
            bound = self._binder.bind(plan, self._now_ms())
            answer = await self._batcher.ask(Balance(bound), deadline_seconds)
            if answer[0] == Outcome.OK:
                break
        else:
            raise LimitsUnavailable(f"balances ended as {Outcome(answer[0]).name.lower()}")
        _, _, nexts, pairs, resets = answer
        return tuple(
            LayerBalance(
                layer=layer,
                settled=pairs[2 * index],
                held=pairs[2 * index + 1],
                period_id=bound.period_ids[index][nexts >> index & 1],
                resets_at_ms=resets[index] or None,
            )
            for index, layer in enumerate(plan.layers)
        )

    async def aclose(self, deadline_seconds: float) -> int:
        """Write the queued settles, then close; return how many could not be written.

        Admits are refused from the first moment. What is left over is settled again from
        the usage records at the next start.
        """
        self._heartbeat.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._heartbeat
        return await self._batcher.aclose(deadline_seconds)

    def _close(self, reservation: Reservation, operation: Operation) -> None:
        self._active.pop(reservation.request_id, None)
        self._batcher.push(operation)

    async def _ask_at_once(self, operation: Operation) -> Answer:
        """Ask for a caller who waits as long as one who wants to be admitted."""
        if not self.is_available:
            raise LimitsUnavailable("the counters cannot be asked")
        return await self._batcher.ask(operation, ADMIT_SECONDS)

    async def _keys_of(self, request_id: str, deadline_seconds: float) -> list[str] | None:
        answer = await self._batcher.ask(Find(request_id), deadline_seconds)
        return answer[2] if _was_found(answer) else None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self.renew_leases()

    async def renew_leases(self) -> None:
        """Queue a renewal for every request that has been in flight for some seconds."""
        oldest_allowed = self._loop.time() - _YOUNG_SECONDS
        for count, reservation in enumerate(list(self._active.values()), start=1):
            if not self.is_available:
                # Renewals would pile up; leases outlast two rounds.
                return
            if reservation.is_open and reservation.since <= oldest_allowed:
                self._batcher.push_later(Heartbeat(reservation.request_id, reservation.bound))
            if count % _HEARTBEATS_A_TURN == 0:
                await asyncio.sleep(0)

    def _now_ms(self) -> int:
        return self._batcher.clock.now_ms(self._loop.time())


def _was_found(answer: Answer) -> bool:
    if answer[0] == Outcome.FAULT:
        raise LimitsUnavailable("the reservation could not be read")
    return bool(answer[0] in (Outcome.OK, Outcome.DUPLICATE))


def _is_admitted(future: asyncio.Future[Answer]) -> bool:
    if not future.done() or future.cancelled() or future.exception() is not None:
        return False
    return bool(future.result()[0] in (Outcome.OK, Outcome.DUPLICATE))
