"""A fleet as the link between control planes sees it, played by a test: no streams, no configuration."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.peers import News, OnNews
from controlplane.snapshots.replicas import Replicas
from controlplane.snapshots.snapshot import Position
from controlplane.store.database import Store
from controlplane.store.listening import Listening
from tests.distribution.node import eventually

EPOCH = "t000000000001-0123456789ab"


@dataclass
class PlayedFleet:
    """Nodes that a test moves, and what was heard of others, in its order."""

    config_epoch: str = EPOCH
    on_news: OnNews | None = None
    nodes: dict[str, Position] = field(default_factory=dict)
    heard: list[tuple[object, ...]] = field(default_factory=list)
    revocations: list[pb.Revocation] = field(default_factory=list)

    def own_nodes(self) -> Mapping[str, Position]:
        return dict(self.nodes)

    def hear_peer_nodes(self, node_ids: Collection[str]) -> None:
        self.heard += [("live", node_id) for node_id in sorted(node_ids)]

    def hear_peer_revocation(self, revocation: pb.Revocation) -> None:
        self.revocations.append(revocation)

    def hear_peer_revocation_ack(self, node_id: str, revocation_id: str, is_kept: bool) -> None:
        self.heard.append(("ack", node_id, revocation_id, is_kept))

    def hear_peer_applied(self, node_id: str, position: Position) -> None:
        self.heard.append(("applied", node_id, position.config_epoch, position.revision))

    def describe(self) -> Mapping[str, bytes]:
        return {node_id: f"state of {node_id}".encode() for node_id in self.nodes}

    def move(self, node_id: str, revision: int) -> None:
        """Let a node come, or stand at a revision."""
        self.nodes[node_id] = Position(self.config_epoch, revision)
        self._tell(News(node_id, self.nodes[node_id]))

    def acknowledge(self, node_id: str, revocation_id: str, *, is_kept: bool = True) -> None:
        self._tell(News(node_id, self.nodes[node_id], revocation_id, is_kept))

    def leave(self, node_id: str) -> None:
        self._tell(News(node_id, self.nodes.pop(node_id), is_connected=False))

    def _tell(self, news: News) -> None:
        if self.on_news is not None:
            self.on_news(news)


@dataclass
class Peer:
    """One control plane's end of the link."""

    fleet: PlayedFleet
    replicas: Replicas
    listening: Listening


@asynccontextmanager
async def linked(url: str, control_plane_id: str, *node_ids: str) -> AsyncIterator[Peer]:
    """Run one end of the link until the block ends."""
    store = Store(url)
    listening = Listening(store)
    replicas = Replicas(store, listening, control_plane_id)
    fleet = PlayedFleet(nodes={node_id: Position(EPOCH, 1) for node_id in node_ids})
    tasks = [
        asyncio.create_task(listening.run()),
        asyncio.create_task(replicas.run(fleet, fleet.describe)),
    ]
    try:
        if store.is_shared:
            await eventually(lambda: listening.is_connected)
        yield Peer(fleet, replicas, listening)
    finally:
        # The link says goodbye while it is still connected.
        for task in reversed(tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await store.close()
