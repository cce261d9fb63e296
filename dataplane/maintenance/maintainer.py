"""Keeps the counters under one hash tag in agreement with the ledger, together with its peers.

Every node runs one. All of them say that they are there and hand over what they have when counters
are lost; one of them at a time holds the lease, and reaps, compares and rebuilds for all.
"""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from dataplane.control.compiling.releasing import Releasing
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.operations import ResetClock
from dataplane.maintenance.budget_news import BudgetNews, Capacities
from dataplane.maintenance.counter_table import CounterTable
from dataplane.maintenance.freezing import FROZEN_SECONDS, LOOK_SECONDS, Freezer
from dataplane.maintenance.handovers import Handovers
from dataplane.maintenance.ports import Desk, Ledger, Limiter, Reporter
from dataplane.maintenance.reaping import Reaper
from dataplane.maintenance.rebuilding import WAIT_SECONDS, Rebuilder, owns_all
from dataplane.maintenance.reconciling import SEEN_WITHIN_MS, Reconciler
from dataplane.maintenance.registry import NodeRegistry
from dataplane.maintenance.seeding import Seeder
from dataplane.maintenance.shared_halves import SharedHalves
from dataplane.maintenance.stopping import stop
from dataplane.maintenance.terms import FencedError, MaintenanceLease, Term, unfenced
from dataplane.maintenance.verifying import BETWEEN_SECONDS, Verification, Verifier

# One duty that takes longer has met something that does not end; it begins anew.
_DUTY_SECONDS: Final = 300.0
_GOODBYE_SECONDS: Final = 2.0
# Between two duties: whatever waited for the first one comes before the second.
_REST_SECONDS: Final = 0.1
# After trouble: what is behind is raised when two rounds running have found it.
_SOON_ROUNDS: Final = 2
# So much of the time may be spent on comparing.
_SHARE: Final = 0.01
T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, how long: seconds, but for `lease_ms` and `seen_within_ms`.

    `beat` is between two renewals of lease and presence, `look` between two looks at whether there is
    something to do that nobody told of, `reap` between two rounds of the reaper. A round of comparison follows the last one
    after `reconcile_least` to `reconcile_most`, the longer the more it took, and after trouble `soon`. `quiet` is how long
    nothing is reaped after an outage, in which the leases of live streams ran out. `rebuild_wait` is for
    nodes that do not hand over, `frozen` for how long one stands still at most, `between` is between
    the two readings of a verification. `retry` is after a failure,
    `freeze_look` between two looks, while counters are cold, at whether a rebuild wants something of
    this node.
    """

    beat: float = 5.0
    look: float = 1.0
    reap: float = 5.0
    reconcile_least: float = 10.0
    reconcile_most: float = 60.0
    soon: float = 1.0
    quiet: float = 15.0
    rebuild_wait: float = WAIT_SECONDS
    frozen: float = FROZEN_SECONDS
    between: float = BETWEEN_SECONDS
    retry: float = 1.0
    freeze_look: float = LOOK_SECONDS
    lease_ms: int = 15_000
    seen_within_ms: int = SEEN_WITHIN_MS


@dataclass(slots=True)
class _Agenda:
    """When a term's duties are due, by the loop's clock; nothing is before `retry_at`.

    The next `soon_rounds` of comparison follow each other soon.
    """

    reap_at: float
    reconcile_at: float
    retry_at: float
    soon_rounds: int = 0


class NotMaintainingError(Exception):
    """This node does not maintain the counters, or they are being rebuilt; another may, or later."""


class Maintainer:
    """One node's part in maintaining the counters; run it as a task."""

    def __init__(
        self,
        desk: Desk,
        limiter: Limiter,
        reporter: Reporter,
        ledger: Ledger,
        current_snapshot: Callable[[], Snapshot | None],
        node_id: str,
        clock_ms: Callable[[], int],
        pace: Pace | None = None,
        *,
        owns: Callable[[SubjectKind], bool] = owns_all,
        turns: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Put the parts together; `run` begins to work.

        Args:
            desk: A connection to the counters; stays the caller's.
            limiter: Counts this process' requests with them.
            reporter: Delivers this process' records.
            ledger: Is asked for sums.
            current_snapshot: Returns the configuration in force; None before the first one. A node
                without one maintains nothing.
            node_id: This node.
            clock_ms: Unix milliseconds, as `reporter` has them.
            pace: Other times than production's, for tests.
            owns: Tells whose counters are under the hash tag.
            turns: Entered for whatever goes through all counters: several maintainers in one process
                share one that lets some in at a time.
        """
        self._turns = turns or contextlib.nullcontext()
        self._pace = pace = pace or Pace()
        self._desk = desk
        self._limiter = limiter
        self._reporter = reporter
        self._current_snapshot = current_snapshot
        self._clock_ms = clock_ms
        self._loop = asyncio.get_running_loop()
        table = CounterTable(desk)
        news = BudgetNews(desk.keyspace, reporter)
        self._registry = NodeRegistry(desk, node_id)
        self._lease = MaintenanceLease(desk, node_id, pace.lease_ms)
        self._freezer = Freezer(
            Handovers(desk), limiter, reporter, node_id, pace.frozen, pace.freeze_look
        )
        self._reaper = Reaper(desk, reporter, news, SharedHalves(desk, ledger))
        self._reconciler = Reconciler(table, ledger, self._registry, news, pace.seen_within_ms)
        self._seeder = Seeder(table, ledger, news)
        self._rebuilder = Rebuilder(desk, table, ledger, self._registry, pace.rebuild_wait, owns)
        self._verifier = Verifier(
            desk, table, ledger, self._registry, pace.between, pace.seen_within_ms
        )
        self._capacities: Capacities | None = None
        self._releasing = Releasing()
        self._failures: dict[str, int] = {}
        self._changes = limiter.changes
        # A process that begins cannot know what was before.
        self._began_at = self._loop.time()

    @property
    def is_holder(self) -> bool:
        """Return whether this node maintains the counters."""
        return self._lease.term is not None

    @property
    def drift_total(self) -> int:
        """Return how many counters this process has set right."""
        return self._reconciler.drift_total

    @property
    def rounds_total(self) -> int:
        """Return how often this process has compared all counters with the ledger."""
        return self._reconciler.rounds_total

    @property
    def reaped_total(self) -> int:
        """Return how many requests of dead processes this process has charged."""
        return self._reaper.reaped_total

    @property
    def rebuilt_total(self) -> int:
        """Return how often this process has rebuilt the counters."""
        return self._rebuilder.rebuilt_total

    async def run(self) -> None:
        """Work until cancelled; then the lease is given up."""
        tasks = [
            asyncio.create_task(self._freezer.run(), name="maintenance-freezer"),
            asyncio.create_task(self._attend(), name="maintenance-presence"),
            asyncio.create_task(self._serve_terms(), name="maintenance-terms"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await stop(*tasks)
            with contextlib.suppress(Exception):
                # A peer takes over when the lease ends, whatever becomes of this.
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._lease.resign()

    def wake(self) -> None:
        """See that another configuration is looked at now, and not only after a while."""
        self._changes.note()

    async def leave(self) -> None:
        """Take this node off the list of nodes, unless it has something left to report.

        For after the last delivery of a process that stops. What cannot be done is left.
        """
        if self._reporter.oldest_unreported_ms is not None:
            return
        with contextlib.suppress(Exception):
            # The list forgets nodes by itself; comparing is more careful until then.
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._registry.leave()

    async def verify(self, *, repairs: bool) -> Verification:
        """Compare every counter with the ledger; with `repairs` set those that differ.

        Raises:
            NotMaintainingError: Another node does, or the counters are being rebuilt.
            LedgerUnavailable, RedisError, OSError: It could not be done.
        """
        term = self._needs_term()
        snapshot = self._current_snapshot()
        if snapshot is None:
            raise NotMaintainingError
        capacities = await self._capacities_under(snapshot)
        work = self._verifier.verify(term.fence, capacities, repairs=repairs)
        return await self._within(term, work)

    async def reset_clock(self) -> None:
        """Let the limiter's time go back to the clock of Redis.

        Raises:
            NotMaintainingError: Another node maintains the counters.
            RedisError, OSError: Redis did not answer.
        """
        term = self._needs_term()
        try:
            unfenced(await self._desk.run(ResetClock(term.fence)))
        except FencedError:
            raise NotMaintainingError from None

    def _needs_term(self) -> Term:
        term = self._lease.term
        if term is None or self._limiter.is_cold:
            raise NotMaintainingError
        return term

    async def _within(self, term: Term, work: Awaitable[T]) -> T:
        """Return what `work` returns, if the term outlasts it."""
        task = asyncio.ensure_future(work)
        ended = asyncio.create_task(term.ended.wait())
        try:
            await asyncio.wait(
                {task, ended}, timeout=_DUTY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done():
                raise NotMaintainingError
            return task.result()
        except FencedError:
            raise NotMaintainingError from None
        finally:
            await stop(task, ended)

    async def _attend(self) -> None:
        """Say that this node is there, and ask for the lease, as long as it runs."""
        next_beat_at = 0.0
        was_cold = False
        while True:
            seen, now = self._changes.number, self._loop.time()
            is_cold = self._limiter.is_cold
            if now >= next_beat_at or (is_cold and not was_cold):
                # Lost counters wait for nobody: with them the lease may be lost.
                was_beaten = await self._attempt("beat", self._beat())
                wait = self._pace.beat
                if not was_beaten or (is_cold and not self.is_holder):
                    wait = min(wait, self._pace.retry)
                next_beat_at = now + wait
            was_cold = is_cold
            await self._changes.after(seen, next_beat_at - self._loop.time())

    async def _beat(self) -> None:
        oldest_ms = self._reporter.oldest_unreported_ms
        await self._registry.announce(None if oldest_ms is None else self._clock_ms() - oldest_ms)
        if self._current_snapshot() is not None:
            await self._lease.renew()
        if self.is_holder and not self._limiter.is_cold:
            # Remembered: when the data of Redis is lost, so is the list.
            await self._registry.read()

    async def _serve_terms(self) -> None:
        while True:
            term = await self._lease.next_term()
            self._changes.note()  # of `is_holder`
            self._seeder.forget()
            duties = asyncio.create_task(self._duties(term.fence), name="maintenance-term")
            ended = asyncio.create_task(term.ended.wait())
            try:
                await asyncio.wait({duties, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await stop(duties, ended)
                self._changes.note()

    async def _duties(self, fence: int) -> None:
        """Do what is due, one thing at a time, until the term ends."""
        now = self._loop.time()
        agenda = _Agenda(reap_at=now, reconcile_at=now, retry_at=now)
        while True:
            seen = self._changes.number
            wait_seconds = await self._do_next(agenda, fence)
            await self._changes.after(seen, min(wait_seconds, self._pace.look))

    async def _do_next(self, agenda: _Agenda, fence: int) -> float:
        """Do what is due, if anything; return how many seconds from now on nothing else is."""
        limiter, snapshot, now = self._limiter, self._current_snapshot(), self._loop.time()
        if not (limiter.is_available or limiter.is_cold):
            # What was served without counters is in none of them, and some may not exist yet.
            self._seeder.forget()
            agenda.reconcile_at, agenda.soon_rounds = now, _SOON_ROUNDS
            return math.inf
        if snapshot is None:
            return math.inf
        if now < agenda.retry_at:
            return agenda.retry_at - now
        if limiter.is_cold:
            is_well = await self._attempt("rebuild", self._rebuild(snapshot, fence))
            # What nobody handed over is in the ledger a moment later.
            agenda.reconcile_at = self._loop.time() + self._pace.soon
            agenda.soon_rounds = _SOON_ROUNDS
            wait_seconds = self._pace.retry  # unless the limiter, too, sees them rebuilt before
        else:
            is_well, wait_seconds = await self._do_while_warm(agenda, snapshot, fence)
        if not is_well:
            agenda.retry_at = self._loop.time() + self._pace.retry
        return wait_seconds

    async def _do_while_warm(
        self, agenda: _Agenda, snapshot: Snapshot, fence: int
    ) -> tuple[bool, float]:
        """As `_do_next`, while the counters can be asked; return also whether it was done."""
        pace, clock = self._pace, self._loop.time
        began_at, is_well = clock(), True
        # In an outage the leases of live streams run out.
        quiet_at = max(self._began_at, self._limiter.available_since) + pace.quiet
        reap_at = max(agenda.reap_at, quiet_at)
        if began_at >= reap_at:
            is_well = await self._while_warm("reap", self._reaper.round(fence))
            agenda.reap_at = clock() + pace.reap
        elif self._seeder.is_due(snapshot):
            is_well = await self._while_warm("seed", self._seed(snapshot, fence))
        elif began_at >= agenda.reconcile_at:
            is_well = await self._while_warm("reconcile", self._compare(snapshot, fence))
            wait = max(pace.reconcile_least, (clock() - began_at) / _SHARE)
            wait = pace.soon if agenda.soon_rounds else min(pace.reconcile_most, wait)
            agenda.reconcile_at = clock() + wait
            agenda.soon_rounds = max(0, agenda.soon_rounds - 1)
        else:
            return True, min(reap_at, agenda.reconcile_at) - began_at
        return is_well, _REST_SECONDS

    async def _while_warm(self, duty: str, work: Coroutine[object, object, object]) -> bool:
        """Do something as `_attempt`, but drop it when the counters are lost: a rebuild must not wait."""
        task = asyncio.create_task(self._attempt(duty, work), name=f"maintenance-{duty}")
        cold = asyncio.create_task(self._until_cold())
        try:
            await asyncio.wait({task, cold}, return_when=asyncio.FIRST_COMPLETED)
            return task.done() and task.result()
        finally:
            await stop(task, cold)

    async def _until_cold(self) -> None:
        while not self._limiter.is_cold:
            await self._changes.after(self._changes.number)

    async def _rebuild(self, snapshot: Snapshot, fence: int) -> None:
        async with self._turns:
            # With the counters the lease is lost: two that rebuild would each be handed half.
            await self._lease.renew()
            if self._lease.term is None or self._lease.term.fence != fence:
                raise FencedError
            await self._rebuilder.rebuild(snapshot, fence)

    async def _seed(self, snapshot: Snapshot, fence: int) -> None:
        async with self._turns:
            capacities = await self._capacities_under(snapshot)
            now_ms = await self._registry.now_ms()
            await self._seeder.follow(snapshot, fence, capacities, now_ms)

    async def _compare(self, snapshot: Snapshot, fence: int) -> None:
        async with self._turns:
            await self._reconciler.round(fence, await self._capacities_under(snapshot))

    async def _capacities_under(self, snapshot: Snapshot) -> Capacities:
        if self._capacities is None or self._capacities.snapshot is not snapshot:
            self._capacities = await Capacities.of(snapshot, self._releasing)
        return self._capacities

    async def _attempt(self, duty: str, work: Awaitable[object]) -> bool:
        """Do something that is tried again when it fails; return whether it was done."""
        try:
            async with asyncio.timeout(_DUTY_SECONDS):
                await work
        except FencedError:
            # The next beat tells who holds the lease.
            _log.warning("maintenance_fenced", duty=duty)
            return False
        except Exception as error:
            # A boundary: counters must go on being maintained, whatever fails.
            failures = self._failures[duty] = self._failures.get(duty, 0) + 1
            if failures in (1, 10) or failures % 100 == 0:
                _log.warning(
                    "maintenance_failed", duty=duty, error=type(error).__name__, failures=failures
                )
            return False
        self._failures.pop(duty, None)
        return True
