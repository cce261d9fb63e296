"""Everything between this process and its counters: who admits, who maintains, who is told.

With one hash tag for all counters a `Limiter` and a `Maintainer`, with one for each bucket of
organizations a `ShardedLimiter` and a `ShardedMaintainer`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from redis.exceptions import RedisError

from dataplane.changes import Changes
from dataplane.control.sums import LedgerClient
from dataplane.control.usage import UsageReporter
from dataplane.domain.counters import (
    BudgetEvent,
    CounterName,
    CounterReport,
    CounterTask,
    CounterTaskKind,
)
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.buckets import SHARED_TAG, hash_tag_in
from dataplane.limits.counters import Keyspace
from dataplane.limits.crossings import Crossing
from dataplane.limits.desk import CounterDesk
from dataplane.limits.limiter import Limiter
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.sharded import ShardedLimiter
from dataplane.limits.target import Target
from dataplane.limits.topology import targets_at
from dataplane.maintenance.maintainer import Maintainer, NotMaintainingError
from dataplane.maintenance.sharded import ShardedMaintainer
from dataplane.maintenance.stopping import stop

# Settlements that are not written by then are settled again from the spool at the next start.
_FLUSH_SECONDS: Final = 3.0
_NOT_HERE: Final = "This node does not maintain the counters right now."

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Counting:
    """The limiter of this process and its part in maintaining the counters.

    `shared_target` is where the counters are that no single organization has: guards are there, too.
    """

    limiter: Limiter | ShardedLimiter
    maintainer: Maintainer | ShardedMaintainer
    shared_target: Target
    _work: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        redis_url: str,
        mode: RedisMode,
        reporter: UsageReporter,
        ledger: LedgerClient,
        current_snapshot: Callable[[], Snapshot | None],
        node_id: str,
        clock_ms: Callable[[], int],
    ) -> AsyncIterator["Counting"]:
        """Count with the Redis at `redis_url`; leaving writes what is queued and stops.

        It does not fail when Redis is away.

        Raises:
            ValueError: The URL cannot be understood.
        """

        def tell(crossing: Crossing) -> None:
            counter = Keyspace(hash_tag_in(crossing.key)).parse_counter(crossing.key)
            if counter is not None:
                reporter.note_budget_event(_event_of(crossing, counter))

        target_of = targets_at(redis_url, mode)
        target = target_of(SHARED_TAG)
        sources = (reporter, ledger, current_snapshot, node_id, clock_ms)
        counting: Counting
        async with AsyncExitStack() as stack:
            if mode is RedisMode.ORG:
                sharded = await ShardedLimiter.connect(target_of, on_crossing=tell)
                maintainers = ShardedMaintainer(target_of, sharded, *sources)
                stack.push_async_callback(maintainers.aclose)
                counting = cls(sharded, maintainers, target)
            else:
                limiter = await Limiter.connect(target, on_crossing=tell)
                desk = CounterDesk(target)
                stack.push_async_callback(desk.aclose)
                counting = cls(limiter, Maintainer(desk, limiter, *sources), target)
            stack.push_async_callback(counting._leave, reporter)
            stack.push_async_callback(counting.limiter.aclose, _FLUSH_SECONDS)
            stack.push_async_callback(counting.stop_maintaining)
            yield counting

    @property
    def changes(self) -> Changes:
        """Noted whenever counters can or cannot be asked, or are maintained elsewhere.

        Whoever puts a configuration in force notes it, too: maintaining follows it at once.
        """
        return self.limiter.changes

    def start_maintaining(self) -> None:
        """Begin to maintain the counters; once, when there may be a configuration."""
        task = asyncio.create_task(self.maintainer.run(), name="maintenance")
        task.add_done_callback(_log_failure)
        self._work.append(task)

    async def stop_maintaining(self) -> None:
        """Stop, and leave it to others."""
        while self._work:
            await stop(self._work.pop())

    async def _leave(self, reporter: UsageReporter) -> None:
        """Deliver what is left; a node that owes nothing need not be waited for by anybody."""
        await reporter.delivered(_FLUSH_SECONDS)
        await self.maintainer.leave()

    async def do(self, task: CounterTask) -> CounterReport:
        """Do what a control plane asks of whoever maintains the counters.

        Raises:
            LedgerUnavailable, LimitsUnavailable: It could not be done now.
        """
        try:
            if task.kind is CounterTaskKind.RESET_CLOCK:
                await self.maintainer.reset_clock()
                return CounterReport(task.task_id)
            found = await self.maintainer.verify(repairs=task.kind is CounterTaskKind.REPAIR)
        except NotMaintainingError:
            return CounterReport(task.task_id, _NOT_HERE)
        except (RedisError, OSError) as error:
            _log.warning("counter_task_failed", kind=task.kind.value, error=type(error).__name__)
            raise LimitsUnavailable("the counters could not be read") from error
        return CounterReport(
            task.task_id,
            compared=found.compared,
            differing=found.differing,
            differences=found.differences,
        )


def _event_of(crossing: Crossing, counter: CounterName) -> BudgetEvent:
    return BudgetEvent(
        counter,
        crossing.percent,
        crossing.capacity,
        crossing.settled,
        crossing.held,
        crossing.at_ms,
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_task_failed", task=task.get_name(), exc_info=error)
