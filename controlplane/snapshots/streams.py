"""The streams of one control plane: who comes, who goes, and that each is offered what is newest."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.gate import FullGate
from controlplane.snapshots.identity import NodeIdentityClaim
from controlplane.snapshots.open_stream import Ending
from controlplane.snapshots.opening import SecretOpener
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.tally import Publications, Tally
from controlplane.snapshots.understanding import understanding_of
from controlplane.snapshots.watcher import Surroundings, Watcher

HEARTBEAT_INTERVAL_S: Final = 5.0

# Far above any fleet of one control plane; it bounds what a leaked node token can hold open.
MAX_NODES: Final = 1_000

# 30 min: nodes spread over new control planes, and certificates are looked at again. Not all at the same time.
STREAM_LIFE_S: Final = 1_800.0
_LIFE_SPREAD: Final = 0.2

# Within the grace that the server has for open streams.
_STOPPING_S: Final = 1.0

_log: Final = structlog.get_logger(__name__)


class FleetFullError(Exception):
    """More nodes connect than are allowed."""


class FleetClosedError(Exception):
    """No more nodes are taken: this control plane stops."""


class NodeRefusedError(Exception):
    """A node may not connect; the text may be shown to it."""


class Streams:
    """Every open stream, by node id."""

    def __init__(
        self,
        open_secret: SecretOpener,
        *,
        interval_s: float = HEARTBEAT_INTERVAL_S,
        max_nodes: int = MAX_NODES,
        stream_life_s: float = STREAM_LIFE_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Begin without any.

        Args:
            open_secret: Opens the secrets of credentials.
            interval_s: How often either side of a stream sends a heartbeat.
            max_nodes: More are not taken.
            stream_life_s: After how long a stream is exchanged, give or take a fifth.
            monotonic_s: The clock that all streams go by.
            spread: Chooses between two numbers.
        """
        self.interval_s = interval_s
        self.on_position_ahead: Callable[[Position], None] | None = None
        """Called when a node, or this control plane itself, has something newer than was read last; must not block."""
        self.on_behind: Callable[[], None] | None = None
        """Called to have the database read now; set by the publisher."""
        self.tally = Tally()
        self._publications = Publications()
        self._around = Surroundings(
            interval_s, open_secret, FullGate(), self.tally, self._publications, self._look_ahead
        )
        self._max_nodes = max_nodes
        self._stream_life_s = stream_life_s
        self._monotonic_s = monotonic_s
        self._spread = spread
        self._watchers: dict[str, Watcher] = {}
        self._newest: Snapshot | None = None
        self._banned: dict[str, str] = {}
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

    def own_nodes(self) -> Mapping[str, Position]:
        """Return what the live nodes on this control plane's streams have applied, by node id."""
        return {each.node_id: each.applied for each in self._live()}

    def attach(self, hello: pb.Hello, claim: NodeIdentityClaim | None = None) -> Watcher:
        """Add a stream; an older one of the same node is ended when this one is there.

        Raises:
            NodeRefusedError: The node is banned, or says that it is another one than its certificate is of.
            FleetFullError: There are as many nodes as are allowed.
            FleetClosedError: No more are taken.
            UnusableKeyError: Nothing can be sealed to the key that it sent.
        """
        claim = claim or NodeIdentityClaim()
        self._check(hello.node_id, claim)
        older = self._watchers.get(hello.node_id)
        if older is None and len(self._watchers) >= self._max_nodes:
            raise FleetFullError
        life_s = self._stream_life_s
        watcher = Watcher(
            hello,
            understanding_of(hello),
            claim.organization_ids,
            self._around,
            now_s=self.now_s(),
            lives_s=life_s + self._spread(-life_s * _LIFE_SPREAD, life_s * _LIFE_SPREAD),
        )
        self.tally.streams_total += 1
        self._watchers[hello.node_id] = watcher
        if older is not None:
            self._replace(older, watcher)
        if self._newest is not None:
            watcher.offer(self._newest)
        self._note_arrival(watcher)
        return watcher

    def _check(self, node_id: str, claim: NodeIdentityClaim) -> None:
        if self._is_closed:
            raise FleetClosedError
        if claim.node_id is not None and claim.node_id != node_id:
            raise NodeRefusedError("the certificate is of another node")
        if node_id in self._banned:
            raise NodeRefusedError(self._banned[node_id])

    def _replace(self, older: Watcher, newer: Watcher) -> None:
        if older.is_leaving:
            older.end("the node opened another stream, as it was asked to", Ending.DONE)
            return
        is_restart = older.boot_id != newer.boot_id
        _log.warning("node replaced", node_id=older.node_id, is_restart=is_restart)
        older.end("a newer stream of this node replaced this one")

    def detach(self, watcher: Watcher) -> None:
        """Forget a stream that is closed."""
        watcher.end("closed")
        if self._watchers.get(watcher.node_id) is not watcher:
            return
        del self._watchers[watcher.node_id]
        self._note_departure(watcher)

    def refuse(self, node_id: str, reason: str) -> None:
        """End the stream of a node now and take no other one of it, until `readmit`; `reason` is shown to it."""
        self._banned[node_id] = reason
        watcher = self._watchers.get(node_id)
        if watcher is not None:
            watcher.end(reason, Ending.DENIED)

    def readmit(self, node_id: str) -> None:
        """Take streams of a node again; of one that was not refused, nothing changes."""
        self._banned.pop(node_id, None)

    def close(self) -> None:
        """Ask every node to go elsewhere, end every stream soon and take no new ones."""
        self._is_closed = True
        for watcher in self._watchers.values():
            if watcher.understanding.has_goodbye:
                watcher.leave(pb.GOODBYE_REASON_STOPPING, within_s=_STOPPING_S, now_s=self.now_s())
            else:
                watcher.end("the control plane stops")

    def publish(self, snapshot: Snapshot) -> None:
        """Offer `snapshot` to every node."""
        self._newest = snapshot
        self._publications.note(snapshot.position, self.now_s())
        for watcher in self._watchers.values():
            watcher.offer(snapshot)

    def note_read(self, begun_at_s: float) -> None:
        """Note that the database was read, and what is there published: who claims a later epoch comes from another one."""
        for watcher in self._watchers.values():
            if watcher.connected_at_s <= begun_at_s:
                watcher.check_epoch()

    def _look_ahead(self, position: Position) -> None:
        """Catch up with a position that was published elsewhere."""
        if self.on_position_ahead is not None:
            self.on_position_ahead(position)
        if self.on_behind is not None:
            self.on_behind()

    def _live(self) -> list[Watcher]:
        now_s = self.now_s()
        return [each for each in self._watchers.values() if each.is_live(now_s)]

    def _note_arrival(self, watcher: Watcher) -> None:
        """Do what is to be done for a node that came; nothing here."""

    def _note_departure(self, watcher: Watcher) -> None:
        """Do what is to be done when a node went and has no other stream; nothing here."""
