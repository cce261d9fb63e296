"""The data planes on this control plane's streams, and the receipts of revocations.

A revocation goes to every live node at once, ahead of transfers. Its receipt names who refuses the
subject by now: nodes that acknowledged the revocation, and nodes that applied a transfer which
contains it. Answers that come after the wait are dropped.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.errors import LimitsUnavailableError
from controlplane.domain.revocations import AppliedRevocation, Receipt
from controlplane.snapshots.counter_tasks import CounterTasks
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.transfers import SecretOpener
from controlplane.snapshots.watcher import Watcher

HEARTBEAT_INTERVAL_S: Final = 5.0

# Far above any fleet of one control plane; it bounds what a leaked node token can hold open.
MAX_NODES: Final = 1_000

# Enough for the seconds that a node needs to come back; older ones are in its next transfer.
_REMEMBERED_REVOCATIONS: Final = 1_000

_log: Final = structlog.get_logger(__name__)


class FleetFullError(Exception):
    """More nodes connect than are allowed."""


@dataclass(frozen=True, slots=True)
class RevocationOrder:
    """What is refused from the change of `revision` on."""

    subject: ResourceKey
    revision: int
    config_epoch: str
    terminate_streams: bool = False

    @property
    def revocation_id(self) -> str:
        """The same on every control plane, so that a node told twice knows it."""
        ending = ":terminate" if self.terminate_streams else ""
        return f"{int(self.subject.kind)}:{self.subject.resource_id}:{self.revision}{ending}"

    def to_proto(self, issued_at: datetime) -> pb.Revocation:
        """Encode it."""
        timestamp = Timestamp()
        timestamp.FromDatetime(issued_at)
        return pb.Revocation(
            revocation_id=self.revocation_id,
            revision=self.revision,
            config_epoch=self.config_epoch,
            subject=resources_pb2.ResourceRef(kind=self.subject.kind, id=self.subject.resource_id),
            terminate_streams=self.terminate_streams,
            issued_at=timestamp,
        )


@dataclass(slots=True, eq=False)
class _Pending:
    """A receipt that somebody waits for."""

    order: RevocationOrder
    since_s: float
    waiting: set[str]
    applied: dict[str, int] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, node_id: str, now_s: float) -> None:
        if node_id not in self.waiting:
            return
        self.waiting.discard(node_id)
        self.applied[node_id] = max(0, round((now_s - self.since_s) * 1000))
        if not self.waiting:
            self.complete.set()


class Fleet:
    """Every open stream, by node id, and what is told to all of them."""

    def __init__(
        self,
        open_secret: SecretOpener,
        *,
        interval_s: float = HEARTBEAT_INTERVAL_S,
        max_nodes: int = MAX_NODES,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s = interval_s
        self.config_epoch = ""
        """The epoch of the database that this control plane reads; set by its publisher."""
        self._open_secret = open_secret
        self._max_nodes = max_nodes
        self._monotonic_s = monotonic_s
        self._watchers: dict[str, Watcher] = {}
        self._newest: Snapshot | None = None
        self._recent: deque[tuple[RevocationOrder, datetime]] = deque(
            maxlen=_REMEMBERED_REVOCATIONS
        )
        self._pending: set[_Pending] = set()
        self._counter_tasks = CounterTasks()
        self._moved = asyncio.Event()
        self._is_closed = False

    @property
    def current(self) -> Position:
        """The newest published position; an empty one before the first."""
        return self._newest.position if self._newest else Position()

    def now_s(self) -> float:
        """Return the time of the clock that all streams go by, in seconds."""
        return self._monotonic_s()

    def watchers(self) -> list[Watcher]:
        """Return the open streams, by node id."""
        return [self._watchers[node_id] for node_id in sorted(self._watchers)]

    def attach(self, hello: pb.Hello) -> Watcher:
        """Add a stream; an older one of the same node is ended.

        Raises:
            FleetFullError: There are as many nodes as are allowed, or no more are taken.
        """
        older = self._watchers.get(hello.node_id)
        if self._is_closed or (older is None and len(self._watchers) >= self._max_nodes):
            raise FleetFullError
        if older is not None:
            is_restart = older.boot_id != hello.boot_id
            _log.warning("node replaced", node_id=hello.node_id, is_restart=is_restart)
            older.end("a newer stream of this node replaced this one")
        watcher = Watcher(
            hello,
            interval_s=self.interval_s,
            open_secret=self._open_secret,
            now_s=self.now_s(),
        )
        self._watchers[hello.node_id] = watcher
        if self._newest is not None:
            watcher.offer(self._newest)
        self._catch_up(watcher)
        return watcher

    def detach(self, watcher: Watcher) -> None:
        """Forget a stream that is closed."""
        watcher.end("closed")
        if self._watchers.get(watcher.node_id) is watcher:
            del self._watchers[watcher.node_id]
        self._note_move()

    def close(self) -> None:
        """Ask for every stream to be closed and take no new ones."""
        self._is_closed = True
        for watcher in self._watchers.values():
            watcher.end("the control plane stops")

    def publish(self, snapshot: Snapshot) -> None:
        """Offer `snapshot` to every node."""
        self._newest = snapshot
        for watcher in self._watchers.values():
            watcher.offer(snapshot)

    async def applied_everywhere(self, revision: int, *, within_ms: int) -> bool:
        """Wait until every live node has applied `revision`, at most `within_ms` milliseconds.

        Returns whether they all have. Nodes that come meanwhile are waited for, those that go are
        not; without nodes it is true at once. Cancellation ends the wait.
        """
        try:
            async with asyncio.timeout(within_ms / 1000):
                while not self._is_applied_everywhere(revision):
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _is_applied_everywhere(self, revision: int) -> bool:
        now_s, epoch = self.now_s(), self.config_epoch
        return all(
            watcher.applied.is_at_least(revision, epoch)
            for watcher in self._watchers.values()
            if watcher.is_live(now_s)
        )

    def _note_move(self) -> None:
        """Wake everybody who waits for nodes to stand elsewhere, each wait once."""
        self._moved.set()
        self._moved = asyncio.Event()

    # ── Counter tasks ────────────────────────────────────────────────────────────────────────

    async def run_counter_task(
        self, kind: pb.CounterTaskKind.ValueType, deadline_s: float
    ) -> tuple[str, pb.CounterReport]:
        """Have the live node that maintains the counters do a task; return its id and its report.

        Only nodes on this control plane's streams can be asked.
        By their last heartbeats; of several, the one that was heard last. Cancellation ends the wait, and a task that was
        not sent yet is not sent any more.

        Raises:
            LimitsUnavailableError: No live node maintains them, or it went away meanwhile.
            DeadlineError: It did not answer within `deadline_s`.
        """
        now_s = self.now_s()
        live = (each for each in self._watchers.values() if each.is_live(now_s))
        maintainers = [each for each in live if each.maintains_counters]
        if not maintainers:
            raise LimitsUnavailableError(
                "no data plane that is connected to this control plane maintains the counters: "
                "where there are several control planes, ask another one"
            )
        watcher = max(maintainers, key=lambda each: each.heard_at_s)
        return watcher.node_id, await self._counter_tasks.run(watcher, kind, deadline_s)

    def hear_counter_report(self, watcher: Watcher, report: pb.CounterReport) -> None:
        """Note the outcome of a task."""
        self._counter_tasks.hear(watcher, report)

    # ── Revocations ──────────────────────────────────────────────────────────────────────────

    def announce(self, orders: Iterable[RevocationOrder], issued_at: datetime) -> None:
        """Tell every node of revocations that were found in the database; nobody waits for them."""
        known = {order.revocation_id for order, _ in self._recent}
        for order in orders:
            if order.revocation_id not in known:
                self._send(order, issued_at)

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        """Tell every live node now and wait until all obey, at most `wait_ms` milliseconds.

        Called right after the commit, from which the receipt's times count. Cancellation ends the
        wait; the nodes have been told nevertheless.
        """
        subject = ResourceKey(resources_pb2.ResourceKind.ValueType(kind), subject_id)
        order = RevocationOrder(subject, revision, self.config_epoch, terminate_streams)
        now_s = self.now_s()
        live = {node for node, each in self._watchers.items() if each.is_live(now_s)}
        pending = _Pending(order, now_s, waiting=live)
        for node_id in tuple(live):
            if self._contains(self._watchers[node_id].applied, order):
                pending.note(node_id, now_s)
        self._send(order, datetime.now(UTC))
        await self._until_complete(pending, wait_ms)
        applied = tuple(AppliedRevocation(*item) for item in sorted(pending.applied.items()))
        return Receipt(revision, applied, tuple(sorted(pending.waiting)))

    async def _until_complete(self, pending: _Pending, wait_ms: int) -> None:
        if not pending.waiting or wait_ms <= 0:
            return
        self._pending.add(pending)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await pending.complete.wait()
        except TimeoutError:
            revision, missing = pending.order.revision, sorted(pending.waiting)
            _log.warning("revocation is not everywhere", revision=revision, missing=missing)
        finally:
            self._pending.discard(pending)

    def hear_revocation_ack(self, watcher: Watcher, revocation_id: str) -> None:
        """Note that a node refuses a subject."""
        for pending in self._pending:
            if pending.order.revocation_id == revocation_id:
                pending.note(watcher.node_id, self.now_s())

    def hear_applied(self, watcher: Watcher) -> None:
        """Note that a node stands elsewhere now: it may contain what somebody waits for."""
        self._note_move()
        for pending in self._pending:
            if self._contains(watcher.applied, pending.order):
                pending.note(watcher.node_id, self.now_s())

    @staticmethod
    def _contains(applied: Position, order: RevocationOrder) -> bool:
        return applied.is_at_least(order.revision, order.config_epoch)

    def _send(self, order: RevocationOrder, issued_at: datetime) -> None:
        self._recent.append((order, issued_at))
        message = order.to_proto(issued_at)
        for watcher in self._watchers.values():
            watcher.revoke(message)

    def _catch_up(self, watcher: Watcher) -> None:
        """Tell a node that comes (back) what was revoked since the configuration it starts from."""
        current = self.current
        is_known = watcher.applied.config_epoch == current.config_epoch
        floor = watcher.applied.revision if is_known else current.revision
        for order, issued_at in self._recent:
            if order.revision > floor:
                watcher.revoke(order.to_proto(issued_at))
