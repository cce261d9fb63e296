"""One node's part in maintaining counters that are spread over many hash tags.

Each tag has a `Maintainer` with a share of the configuration, from the first configuration on that has
callers for it, or from its first use on. Whoever holds the lease of the shared tag takes those of all others: so one node can
say what holds of all counters, as with a single tag.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import MAX_DIFFERENCES
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk
from dataplane.limits.sharded import ShardedLimiter
from dataplane.limits.topology import TargetOf
from dataplane.maintenance.maintainer import Maintainer, Pace
from dataplane.maintenance.ports import Ledger, Reporter
from dataplane.maintenance.share_reporter import Pauses, ShareReporter
from dataplane.maintenance.shares import Share, ShareLedger, nobodys_share, shares_of
from dataplane.maintenance.verifying import Verification

# Of 257 tags: in the pace of a single one this alone would keep a third of a core busy.
MANY: Final = Pace(
    beat=10.0,
    look=5.0,
    reap=10.0,
    reconcile_least=60.0,
    freeze_look=0.25,
    lease_ms=30_000,
    seen_within_ms=30_000,
)
# A node that is lost takes a third of all tags with it: so many are gone through at a time.
_TURNS: Final = 32
# Whether there is something that nobody told of.
_LOOK_SECONDS: Final = 1.0


class ShardedMaintainer:
    """One node's part in maintaining all tags; run it as a task."""

    def __init__(
        self,
        target_of: TargetOf,
        limiter: ShardedLimiter,
        reporter: Reporter,
        ledger: Ledger,
        current_snapshot: Callable[[], Snapshot | None],
        node_id: str,
        clock_ms: Callable[[], int],
        pace: Pace = MANY,
    ) -> None:
        """Put the parts together; `run` begins to work. As `Maintainer`, but for `target_of`.

        Args:
            target_of: Tells where the counters under a tag are.
            limiter: Counts this process' requests with them.
            reporter: Delivers this process' records.
            ledger: Is asked for sums.
            current_snapshot: Returns the configuration in force; None before the first one.
            node_id: This node.
            clock_ms: Unix milliseconds, as `reporter` has them.
            pace: Of each tag.
        """
        self._target_of = target_of
        self._limiter = limiter
        self._pauses = Pauses(reporter)
        self._ledger = ledger
        self._current_snapshot = current_snapshot
        self._node_id = node_id
        self._clock_ms = clock_ms
        self._pace = pace
        self._turns = asyncio.Semaphore(_TURNS)
        self._seen: Snapshot | None = None
        self._shares: dict[str, Share] = {}
        self._desks: dict[str, CounterDesk] = {}
        self._maintainers: dict[str, Maintainer] = {}

    @property
    def is_holder(self) -> bool:
        """Return whether this node maintains the counters."""
        shared = self._maintainers.get(SHARED_TAG)
        return shared is not None and shared.is_holder

    @property
    def tags(self) -> frozenset[str]:
        """Return the tags that have a maintainer."""
        return frozenset(self._maintainers)

    @property
    def drift_total(self) -> int:
        """Return how many counters this process has set right."""
        return sum(each.drift_total for each in self._maintainers.values())

    @property
    def reaped_total(self) -> int:
        """Return how many requests of dead processes this process has charged, halves each."""
        return sum(each.reaped_total for each in self._maintainers.values())

    @property
    def rebuilt_total(self) -> int:
        """Return how often this process has rebuilt the counters of a tag."""
        return sum(each.rebuilt_total for each in self._maintainers.values())

    async def run(self) -> None:
        """Work until cancelled; then all leases are given up."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                seen = self._limiter.changes.number
                snapshot = self._current_snapshot()
                if snapshot is not None and self._has_news(snapshot):
                    await self._follow(snapshot, tasks)
                await self._limiter.changes.after(seen, min(self._pace.look, _LOOK_SECONDS))

    async def leave(self) -> None:
        """Take this node off the lists of nodes, unless it has something left to report."""
        await asyncio.gather(*(each.leave() for each in self._maintainers.values()))

    async def verify(self, *, repairs: bool) -> Verification:
        """Compare every counter of every tag with the ledger; as `Maintainer.verify`.

        Raises:
            NotMaintainingError: Another node does, or the counters of a tag are being rebuilt.
            LedgerUnavailable, RedisError, OSError: It could not be done for all of them.
        """
        found = await asyncio.gather(
            *(each.verify(repairs=repairs) for each in self._maintainers.values())
        )
        differences = [each for part in found for each in part.differences]
        return Verification(
            sum(part.compared for part in found),
            sum(part.differing for part in found),
            tuple(differences[:MAX_DIFFERENCES]),
        )

    async def reset_clock(self) -> None:
        """Let the limiter's time go back to the clock of Redis, on every server.

        Raises:
            NotMaintainingError: Another node maintains the counters.
            RedisError, OSError: A server did not answer; others may have been reset.
        """
        await asyncio.gather(*(each.reset_clock() for each in self._maintainers.values()))

    async def aclose(self) -> None:
        """Close all connections, after `run` was cancelled."""
        for desk in self._desks.values():
            await desk.aclose()

    async def _follow(self, snapshot: Snapshot, tasks: asyncio.TaskGroup) -> None:
        """Give every tag its share of a configuration, and a maintainer if it has none."""
        shares = await shares_of(snapshot)
        for tag in self._limiter.tags - shares.keys():
            # Nobody calls (any more), but something is in flight, or was left by a former process.
            shares[tag] = nobodys_share(snapshot)
        # The same mapping: each maintainer's ledger looks there.
        self._shares.update(shares)
        missing = [tag for tag in shares if tag not in self._maintainers]
        limiters = await asyncio.gather(*map(self._limiter.open, missing))
        for tag, limiter in zip(missing, limiters, strict=True):
            desk = self._desks[tag] = CounterDesk(self._target_of(tag), Keyspace(tag))
            maintainer = self._maintainers[tag] = Maintainer(
                desk,
                limiter,
                ShareReporter(self._pauses, tag, _concerns(tag)),
                ShareLedger(self._ledger, partial(self._shares.__getitem__, tag)),
                partial(self._snapshot_of, tag),
                self._node_id,
                self._clock_ms,
                self._pace,
                owns=shares[tag].has_kind,
                turns=self._turns,
            )
            tasks.create_task(maintainer.run(), name=f"maintenance-{tag}")
        self._seen = snapshot
        for maintainer in self._maintainers.values():
            maintainer.wake()

    def _has_news(self, snapshot: Snapshot) -> bool:
        is_new = snapshot is not self._seen
        return is_new or not self._limiter.tags <= self._maintainers.keys()

    def _snapshot_of(self, tag: str) -> Snapshot | None:
        """Return a tag's share; without one, a node asks for no lease and does nothing."""
        if tag != SHARED_TAG and not self.is_holder:
            return None
        return self._shares[tag].snapshot


def _concerns(tag: str) -> Callable[[UsageEvent], bool]:
    if tag == SHARED_TAG:
        return lambda _: True
    return lambda event: bucket_tag(event.organization_id) == tag
