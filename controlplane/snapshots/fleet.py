"""The data planes on this control plane's streams, and the receipts of revocations.

A revocation goes to every live node at once, ahead of transfers. Its receipt names who refuses the
subject by now: nodes that acknowledged the revocation, and nodes that applied a transfer which
contains it, on this control plane's streams and on those of others. Answers that come after the
wait are dropped.
"""

import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import Final

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.errors import LimitsUnavailableError
from controlplane.domain.revocations import Propagation, Receipt
from controlplane.snapshots.counter_tasks import CounterTasks
from controlplane.snapshots.opening import SecretOpener
from controlplane.snapshots.orders import RecentOrders, RevocationOrder, order_from_proto
from controlplane.snapshots.peers import Ask, News, OnNews, Peers
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.snapshot import Position
from controlplane.snapshots.streams import (
    HEARTBEAT_INTERVAL_S,
    MAX_NODES,
    STREAM_LIFE_S,
    Streams,
)
from controlplane.snapshots.waits import Wait
from controlplane.snapshots.watcher import Watcher

_log: Final = structlog.get_logger(__name__)


class Fleet(Streams):
    """The nodes on all open streams: what is told to all of them, and what they say to it."""

    def __init__(
        self,
        open_secret: SecretOpener,
        *,
        peers: Peers | None = None,
        interval_s: float = HEARTBEAT_INTERVAL_S,
        max_nodes: int = MAX_NODES,
        stream_life_s: float = STREAM_LIFE_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without nodes; for the arguments see `Streams`. `peers` are the other control planes, where there are any."""
        super().__init__(
            open_secret,
            interval_s=interval_s,
            max_nodes=max_nodes,
            stream_life_s=stream_life_s,
            monotonic_s=monotonic_s,
        )
        self.config_epoch = ""
        """The epoch of the database that this control plane reads; set by its publisher."""
        self.peers = peers
        self.on_news: OnNews | None = None
        self._recent = RecentOrders()
        self._waits: set[Wait] = set()
        self._counter_tasks = CounterTasks()

    def _note_arrival(self, watcher: Watcher) -> None:
        """Tell a node that comes (back) what it missed; who waits for changes, waits for it too."""
        for order in self._recent.missed_by(watcher.applied, watcher.organization_ids):
            watcher.revoke(order.to_proto())
        for wait in self._waits:
            if not wait.revocation_id:
                wait.join((watcher.node_id,))
        self.hear_applied(watcher)

    def _note_departure(self, watcher: Watcher) -> None:
        for wait in self._waits:
            wait.leave(watcher.node_id)
        self._tell(News(watcher.node_id, watcher.applied, is_connected=False))

    # ── Waiting ──────────────────────────────────────────────────────────────────────────────

    async def applied_everywhere(self, revision: int, *, within_ms: int) -> bool:
        """Wait until every live node has applied `revision`, at most `within_ms` milliseconds.

        Returns whether they all have. Nodes that come meanwhile are waited for, those that go are
        not; without nodes it is true at once. Cancellation ends the wait.
        """
        return not (await self.propagated(revision, wait_ms=within_ms)).missing

    async def propagated(self, revision: int, *, wait_ms: int) -> Propagation:
        """Wait until every live node of any control plane has applied a change, and say which have.

        Nodes that come meanwhile are waited for, those that go are not. Cancellation ends the wait.
        """
        wait = Wait(self.config_epoch, revision, self.now_s())
        ask = Ask(self.config_epoch, revision, wait_ms)
        await self._wait(wait, self._live(), ask)
        return wait.propagation()

    async def _wait(self, wait: Wait, own: Iterable[Watcher], ask: Ask) -> None:
        """Wait for own nodes and for those of other control planes, which are asked first."""
        self._waits.add(wait)
        try:
            for watcher in own:
                wait.join((watcher.node_id,))
                wait.note_position(watcher.node_id, watcher.applied, self.now_s())
            if self.peers is not None:
                wait.join(self.peers.live_nodes().keys() - self._watchers.keys())
                if wait.missing or ask.revocation is not None:
                    self.peers.ask(ask)
            await wait.until_complete(ask.wait_ms)
        finally:
            self._waits.discard(wait)

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
        maintainers = [each for each in self._live() if each.maintains_counters]
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

    def remember(self, orders: Iterable[RevocationOrder]) -> None:
        """Note what was revoked in the last days, to be told to nodes that come back and may have missed it."""
        for order in orders:
            self._recent.add(order)

    def announce(self, orders: Iterable[RevocationOrder]) -> None:
        """Tell every node of revocations that were found in the database; nobody waits for them."""
        for order in orders:
            if self._recent.add(order):
                self._send(order)

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        organization_id: str = "",
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        """Tell every live node now and wait until all obey, at most `wait_ms` milliseconds.

        Called right after the commit, from which the receipt's times count. Nodes that do not serve
        the organization are neither told nor waited for. Cancellation ends the wait; the nodes have
        been told nevertheless.
        """
        subject = ResourceKey(resources_pb2.ResourceKind.ValueType(kind), subject_id)
        order = RevocationOrder(
            subject,
            revision,
            self.config_epoch,
            datetime.now(UTC),
            organization_id,
            terminate_streams,
        )
        self._recent.add(order)
        wait = Wait(order.config_epoch, revision, self.now_s(), order.revocation_id)
        own = [each for each in self._live() if order.concerns(each.organization_ids)]
        # Also where it is known already: who acknowledged it before would not be counted.
        self._send(order)
        await self._wait(wait, own, Ask(order.config_epoch, revision, wait_ms, order.to_proto()))
        if wait.missing and wait_ms > 0:
            _log.warning(
                "revocation is not everywhere", revision=revision, missing=list(wait.missing)
            )
        return wait.receipt()

    def hear_revocation_ack(self, watcher: Watcher, ack: pb.RevocationAck) -> None:
        """Note that a node refuses a subject."""
        self.hear_peer_revocation_ack(watcher.node_id, ack.revocation_id, ack.is_kept)
        self._tell(News(watcher.node_id, watcher.applied, ack.revocation_id, ack.is_kept))

    def hear_applied(self, watcher: Watcher) -> None:
        """Note where a node stands: it may contain what somebody waits for."""
        self.hear_peer_applied(watcher.node_id, watcher.applied)
        self._tell(News(watcher.node_id, watcher.applied))

    def _send(self, order: RevocationOrder) -> None:
        message = order.to_proto()
        for watcher in self._watchers.values():
            if order.concerns(watcher.organization_ids):
                watcher.revoke(message)

    # ── Other control planes ─────────────────────────────────────────────────────────────────

    def hear_peer_nodes(self, node_ids: Collection[str]) -> None:
        """Note live nodes of another control plane: who waits, waits for them too."""
        for wait in self._waits:
            wait.join(node_id for node_id in node_ids if node_id not in self._watchers)

    def hear_peer_revocation(self, revocation: pb.Revocation) -> None:
        """Pass a committed revocation of another control plane on; a known one is dropped."""
        self.announce([order_from_proto(revocation)])

    def hear_peer_revocation_ack(self, node_id: str, revocation_id: str, is_kept: bool) -> None:
        """Note that a node of any control plane refuses a subject."""
        for wait in self._waits:
            if wait.revocation_id == revocation_id:
                wait.note_ack(node_id, is_kept=is_kept, now_s=self.now_s())

    def hear_peer_applied(self, node_id: str, position: Position) -> None:
        """Note where a node of any control plane stands; the digest is not looked at."""
        for wait in self._waits:
            wait.note_position(node_id, position, self.now_s())

    def _tell(self, news: News) -> None:
        if self.on_news is not None:
            self.on_news(news)
