"""A limiter whose counters are spread over several Redis servers, by organization.

It is made of one `Limiter` for each hash tag (`buckets`), each with its own connection to the server
that has the tag, its own breaker and its own counter epoch. Layers that organizations share are
admitted first, in a reservation of their own, then those of the organization; where those refuse,
fail or are cancelled, the shared half is undone.

The two halves are not one atomic step:
- between them the shared layers hold what the organization's may refuse a moment later;
- a process that dies between them leaves a shared half that nobody reports. It holds until its lease
  ends and is charged then; some minutes later, when the ledger still has no row, it is given back;
- a half whose server is away is settled when that is back, after the other.
Within each half everything is as in one `Limiter`. What a request asks for is the same in both.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from dataplane.changes import Changes
from dataplane.domain.breaker import BreakerState
from dataplane.domain.denials import closed_denial
from dataplane.domain.limiting import Demand, Denied, LayerPlan, LimitsUnavailable
from dataplane.domain.principals import Principal
from dataplane.domain.quotas import LayerBalance
from dataplane.domain.revocations import Revocation
from dataplane.domain.snapshot import Position
from dataplane.limits.batcher import ignore_crossing
from dataplane.limits.buckets import (
    SHARED_TAG,
    Divider,
    bucket_tag,
    half_meta,
)
from dataplane.limits.connection import TIMEOUT_SECONDS
from dataplane.limits.crossings import Crossing
from dataplane.limits.limiter import PATIENCE_SECONDS, Limiter
from dataplane.limits.marks import MOST_REMEMBERED, could_call
from dataplane.limits.reservation import Held, Reservation
from dataplane.limits.split_reservation import SplitReservation, whole_denial
from dataplane.limits.topology import TargetOf

# Servers that are away take 150 ms each; there are up to 257 tags.
_OPENED_AT_ONCE: Final = 32
# How long callers wait for the counters of a bucket that nobody has used before: an organization's
# first call finds them cold, and they are rebuilt within a second if all data planes are there.
FRESH_SECONDS: Final = 3.0
# More than that, and it is no organization's first call but a service that begins from nothing.
MAX_WAITING: Final = 1_000


class ShardedLimiter:
    """The limits of one data-plane process over many servers; make one with `connect`.

    What it says of itself as a whole (`is_available`, `is_cold`, `state`, `available_since`) it says
    of the shared counters: without them hardly anybody is admitted, while those of one
    organization's bucket that are away are that organization's trouble alone.
    """

    def __init__(
        self,
        target_of: TargetOf,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_crossing: Callable[[Crossing], None] = ignore_crossing,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        """Prepare; `connect` is the way in."""
        self._target_of = target_of
        self._timeout_seconds = timeout_seconds
        self._on_crossing = on_crossing
        self._divider = Divider()
        self._limiters: dict[str, Limiter] = {}
        self._opening: dict[str, asyncio.Task[Limiter]] = {}
        self._fresh_seconds = fresh_seconds
        self._warming: dict[str, asyncio.Task[None]] = {}
        self._waiting = 0
        self._unmarked: deque[Revocation] = deque(maxlen=MOST_REMEMBERED)
        self._marking: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(_OPENED_AT_ONCE)
        self._is_closed = False

    @classmethod
    async def connect(
        cls,
        target_of: TargetOf,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_crossing: Callable[[Crossing], None] = ignore_crossing,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> Self:
        """Return a limiter whose shared counters were asked; the others are opened when needed.

        It does not fail when servers are away or their counters cold. Parameters are those of
        `Limiter.connect`, for every tag; `fresh_seconds` is how long callers wait for the counters
        of a bucket that are cold when it is opened.
        """
        limiter = cls(target_of, timeout_seconds, on_crossing, fresh_seconds)
        await limiter.open(SHARED_TAG)
        return limiter

    @property
    def shared(self) -> Limiter:
        """The limiter of what organizations share."""
        return self._limiters[SHARED_TAG]

    @property
    def is_available(self) -> bool:
        """Tell whether admits are being asked of the server of the shared counters."""
        return self.shared.is_available

    @property
    def is_cold(self) -> bool:
        """Tell whether the shared counters wait for being rebuilt."""
        return self.shared.is_cold

    @property
    def available_since(self) -> float:
        """When the last outage of the shared counters ended; by the loop's clock in seconds."""
        return self.shared.available_since

    @property
    def changes(self) -> Changes:
        """Noted whenever `is_available`, `is_cold` or `tags` may have changed."""
        return self.shared.changes

    @property
    def state(self) -> BreakerState:
        """The state of the breaker on the server of the shared counters."""
        return self.shared.state

    @property
    def tags(self) -> frozenset[str]:
        """The hash tags in use."""
        return frozenset(self._limiters)

    @property
    def unavailable_tags(self) -> frozenset[str]:
        """The hash tags in use whose counters cannot be asked right now."""
        return frozenset(tag for tag, each in self._limiters.items() if not each.is_available)

    @property
    def queued(self) -> int:
        """The number of operations that no server has answered yet."""
        return sum(each.queued for each in self._limiters.values())

    @property
    def dropped(self) -> int:
        """The number of operations given up since the start; the ledger still has them."""
        return sum(each.dropped for each in self._limiters.values())

    @property
    def clock_behind_ms(self) -> int:
        """How far any server's clock is behind its limiter time; above 60,000 is an alarm."""
        return max(each.clock_behind_ms for each in self._limiters.values())

    async def open(self, hash_tag: str) -> Limiter:
        """Return the limiter of a tag, connected when it is asked for first; in some 150 ms at most.

        Raises:
            LimitsUnavailable: This one was closed.
        """
        known = self._limiters.get(hash_tag)
        if known is not None:
            return known
        if self._is_closed:
            raise LimitsUnavailable("the limiter is closing")
        opening = self._opening.get(hash_tag)
        if opening is None:
            opening = asyncio.create_task(self._connected(hash_tag), name="limits-open")
            self._opening[hash_tag] = opening
            opening.add_done_callback(lambda _: self._opening.pop(hash_tag, None))
        # Whoever came first may be cancelled; the others go on waiting.
        return await asyncio.shield(opening)

    async def reserve(
        self,
        request_id: str,
        plan: LayerPlan,
        demand: Demand,
        meta: bytes,
        on_late_undo: Callable[[], None] | None = None,
        position: Position | None = None,
        principal: Principal | None = None,
    ) -> Reservation | SplitReservation:
        """Reserve `demand` from every layer of `plan`, or in the end from none.

        Ends within 100 ms for each half, and up to 3 s later while a bucket is new. As
        `Limiter.reserve`, but for the order of denials: a shared layer that is short is found
        before any of the organization's, and its denial tells nothing of those.

        Raises:
            Denied: A layer was short; no counter has moved, or has moved back.
            Overruled: The caller was revoked; likewise.
            LimitsUnavailable: A server did not answer in time.
        """
        caller = position, principal
        if plan.closed_layer is not None:
            raise Denied(closed_denial(plan.closed_layer))
        halves = self._divider.halves_of(plan)
        if halves.own is None:
            return await self.shared.reserve(request_id, plan, demand, meta, on_late_undo, *caller)
        own_limiter = self._limiters.get(halves.tag) or await self.open(halves.tag)
        if halves.shared is None:
            return await own_limiter.reserve(request_id, plan, demand, meta, on_late_undo, *caller)
        if not own_limiter.is_available:
            await self._warmed(halves.tag)
        if not own_limiter.is_available:
            # Spares the shared server two operations for each call that has no chance.
            raise LimitsUnavailable("the organization's counters cannot be asked")
        shared = await self.shared.reserve(
            request_id, halves.shared, demand, half_meta(plan, demand)
        )
        with contextlib.ExitStack() as stack:
            stack.callback(shared.cancel)
            try:
                # Nobody makes a record of a shared half: only this one can come too late.
                own = await own_limiter.reserve(
                    request_id, halves.own, demand, meta, on_late_undo, *caller
                )
            except Denied as denied:
                denial = whole_denial(denied.denial, halves, shared, demand)
                raise Denied(denial) from None
            stack.pop_all()
        return SplitReservation(halves, shared, own)

    def mark_revoked(self, revocation: Revocation) -> None:
        """Tell the other nodes by Redis that something was revoked; idempotent, and waits for nothing.

        The mark is kept in the bucket of its organization, which is opened for it, and beside what
        organizations share, for calls that nothing else counts. Otherwise as `Limiter.mark_revoked`.
        """
        if not could_call(revocation) or self._is_closed:
            return
        self.shared.mark_revoked(revocation)
        if not revocation.organization_id:
            return
        known = self._limiters.get(bucket_tag(revocation.organization_id))
        if known is not None:
            known.mark_revoked(revocation)
            return
        self._unmarked.append(revocation)
        if self._marking is None:
            self._marking = asyncio.create_task(self._mark(), name="limits-mark")

    @property
    def unwritten_marks(self) -> int:
        """The number of revocations that some server is not known to have."""
        written = sum(each.unwritten_marks for each in self._limiters.values())
        return written + len(self._unmarked)

    def in_flight(self) -> list[Held]:
        """Return what requests hold; those with two halves are told twice."""
        return [held for each in self._limiters.values() for held in each.in_flight()]

    async def forfeit(
        self,
        request_id: str,
        charged_nanousd: int | None = None,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Charge both halves of a reservation left by a process that died; as `Limiter.forfeit`."""
        found = [
            await each.forfeit(request_id, charged_nanousd, deadline_seconds)
            for each in await self._both(organization_id)
        ]
        return any(found)

    async def settle_again(
        self,
        request_id: str,
        tokens: int,
        cost_nanousd: int,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Settle both halves of a request of a former process; as `Limiter.settle_again`."""
        found = [
            await each.settle_again(request_id, tokens, cost_nanousd, deadline_seconds)
            for each in await self._both(organization_id)
        ]
        return any(found)

    async def release_again(
        self,
        request_id: str,
        deadline_seconds: float = PATIENCE_SECONDS,
        *,
        organization_id: str = "",
    ) -> bool:
        """Give back both halves of a request of a former process; as `Limiter.release_again`."""
        found = [
            await each.release_again(request_id, deadline_seconds)
            for each in await self._both(organization_id)
        ]
        return any(found)

    async def balances(
        self, plan: LayerPlan, deadline_seconds: float = PATIENCE_SECONDS
    ) -> tuple[LayerBalance, ...]:
        """Return what every layer of `plan` has counted; each half is read at one instant.

        Raises:
            LimitsUnavailable: No answer in time, or counters are cold.
        """
        halves = self._divider.halves_of(plan)
        own_limiter = await self.open(halves.tag)
        shared: tuple[LayerBalance, ...] = ()
        own: tuple[LayerBalance, ...] = ()
        if halves.shared is not None:
            shared = await self.shared.balances(halves.shared, deadline_seconds)
        if halves.own is not None:
            own = await own_limiter.balances(halves.own, deadline_seconds)
        return halves.merged(shared, own)

    async def renew_leases(self) -> None:
        """Queue a renewal for every request that has been in flight for some seconds."""
        for each in list(self._limiters.values()):
            await each.renew_leases()

    async def aclose(self, deadline_seconds: float) -> int:
        """Write the queued settles, then close; return how many could not be written."""
        self._is_closed = True
        if self._opening:
            await asyncio.wait(list(self._opening.values()))
        for work in (*self._warming.values(), *filter(None, [self._marking])):
            work.cancel()
        closing = (each.aclose(deadline_seconds) for each in self._limiters.values())
        return sum(await asyncio.gather(*closing))

    async def _connected(self, hash_tag: str) -> Limiter:
        async with self._turns:
            limiter = await Limiter.connect(
                self._target_of(hash_tag),
                hash_tag=hash_tag,
                timeout_seconds=self._timeout_seconds,
                on_crossing=self._on_crossing,
            )
        self._limiters[hash_tag] = limiter
        self.changes.note()
        if limiter.is_cold:
            warming = asyncio.create_task(self._warm(limiter), name="limits-warm")
            self._warming[hash_tag] = warming
            warming.add_done_callback(lambda _: self._warming.pop(hash_tag, None))
        return limiter

    async def _mark(self) -> None:
        """Open the buckets of what was revoked, one after the other."""
        try:
            while self._unmarked:
                revocation = self._unmarked[0]
                limiter = await self.open(bucket_tag(revocation.organization_id))
                limiter.mark_revoked(revocation)
                # It may have been pushed out meanwhile.
                if self._unmarked and self._unmarked[0] is revocation:
                    self._unmarked.popleft()
        except LimitsUnavailable:
            # Closing: other nodes mark it, too.
            self._unmarked.clear()
        finally:
            self._marking = None

    async def _warm(self, limiter: Limiter) -> None:
        """Return when counters are rebuilt that were cold when they were first looked at."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._fresh_seconds):
                while limiter.is_cold:
                    await limiter.changes.after(limiter.changes.number)

    async def _warmed(self, hash_tag: str) -> None:
        """Wait for the counters of a new bucket, as long as anybody does; others wait for nothing."""
        warming = self._warming.get(hash_tag)
        if warming is None or self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.wait({warming})
        finally:
            self._waiting -= 1

    async def _both(self, organization_id: str) -> tuple[Limiter, Limiter]:
        return self.shared, await self.open(bucket_tag(organization_id))
