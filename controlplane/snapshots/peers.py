"""What a fleet and the control planes beside it say to each other.

Several control planes serve one database, and each holds the streams of some nodes. A receipt covers all of them: the
one that somebody waits on asks the others, and they tell what their nodes obey as they hear it. Nothing here is needed
for correctness: the database is the truth, and who hears nothing reads it within a second.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.snapshot import Position


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody waits until the nodes obey a change; the other control planes are to tell how theirs do."""

    config_epoch: str
    revision: int
    wait_ms: int
    """How long answers are of use; 0: nobody waits, the others are only to pass on `revocation`."""
    revocation: pb.Revocation | None = None
    """What is revoked by the change, for the others to pass on at once; None: it is a change like any other."""


@dataclass(frozen=True, slots=True)
class News:
    """What a node of this control plane just said of itself."""

    node_id: str
    applied: Position
    revocation_id: str = ""
    """The revocation that it acknowledged; empty when it says where it stands."""
    is_kept: bool = False
    """The acknowledged revocation survives a restart of the node."""
    is_connected: bool = True
    """False: its stream has just ended, and there is no other one of it here."""


OnNews = Callable[[News], None]
"""Called in the event loop; must not block or raise."""


class Peers(Protocol):
    """The other control planes, as a fleet uses them. Nothing here waits or raises."""

    def live_nodes(self) -> Mapping[str, str]:
        """Return the nodes on other control planes, heard within 15 s: node id → control plane id."""
        ...

    def states(self) -> Mapping[str, bytes]:
        """Return them as serialized `tollkeeper.admin.v1.Node`, by node id; at most about 5 s old."""
        ...

    def ask(self, ask: Ask) -> None:
        """Ask the others. What they tell arrives at the fleet (`PeerNews`) until `wait_ms` are over."""
        ...

    def answer(self, news: News) -> None:
        """Tell whoever waits for it what a node of this control plane said: an `OnNews`."""
        ...


class PeerNews(Protocol):
    """A fleet, as the link to other control planes uses it. Everything is called in the event loop."""

    on_news: OnNews | None
    """Called after each acknowledgement and each heartbeat of a node of this control plane, and when one comes or goes."""

    @property
    def config_epoch(self) -> str:
        """The epoch of the database that this control plane reads."""
        ...

    def own_nodes(self) -> Mapping[str, Position]:
        """Return what the live nodes of this control plane have applied, by node id."""
        ...

    def hear_peer_nodes(self, node_ids: Collection[str]) -> None:
        """Note live nodes of another control plane: who waits for a receipt or a change waits for them too.

        Comes before the first answer of these nodes. A node that is on a stream of this control plane stays its own.
        """
        ...

    def hear_peer_revocation(self, revocation: pb.Revocation) -> None:
        """Pass a committed revocation of another control plane on to the own nodes; a known one is dropped."""
        ...

    def hear_peer_revocation_ack(self, node_id: str, revocation_id: str, is_kept: bool) -> None:
        """Note that a node of another control plane refuses a subject."""
        ...

    def hear_peer_applied(self, node_id: str, position: Position) -> None:
        """Note where a node of another control plane stands; the position's digest is not told."""
        ...
