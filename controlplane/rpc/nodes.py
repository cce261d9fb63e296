"""`NodeService`: what the connected data planes have applied, whichever control plane they are connected to."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import grpc.aio
from google.protobuf.message import DecodeError
from sqlmodel import col, select
from tollkeeper.admin.v1 import node_service_pb2 as pb

from controlplane.rpc.changing import Backend
from controlplane.rpc.enrolled_nodes import EnrolledNodes
from controlplane.rpc.node_enrollment import Joining
from controlplane.rpc.node_views import node_to_proto
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.snapshot import position_to_proto
from controlplane.store.tables import Organization


class OtherNodes(Protocol):
    """The nodes that are connected to other control planes."""

    def states(self) -> Mapping[str, bytes]:
        """Return them as `node_to_proto` made them, serialized, by node id."""
        ...


class NodeServicer(EnrolledNodes):
    """Shows a fleet, and those of the control planes beside it.

    Args:
        backend: For what the admin servicers share.
        joining: How nodes become nodes.
        fleet: The nodes on this control plane's streams.
        control_plane_id: This one's.
        others: The nodes of other control planes; None where there are none.
    """

    def __init__(
        self,
        backend: Backend,
        joining: Joining,
        fleet: Fleet,
        control_plane_id: str,
        others: OtherNodes | None = None,
    ) -> None:
        super().__init__(backend, joining)
        self._fleet = fleet
        self._store = backend.store
        self._control_plane_id = control_plane_id
        self._others = others

    async def ListNodes(
        self,
        request: pb.ListNodesRequest,
        context: grpc.aio.ServicerContext[pb.ListNodesRequest, pb.ListNodesResponse],
    ) -> pb.ListNodesResponse:
        """Return the connected nodes, by node id; what this control plane sees itself is newer than what others tell."""
        nodes = {node.node_id: node for node in self._elsewhere()}
        nodes |= {node.node_id: node for node in self.own_nodes()}
        shown = [nodes[node_id] for node_id in sorted(nodes)]
        await self._name_organizations(shown)
        return pb.ListNodesResponse(current=position_to_proto(self._fleet.current), nodes=shown)

    def own_nodes(self) -> list[pb.Node]:
        """Return the nodes on this control plane's streams, their organizations by id."""
        now_s, now = self._fleet.now_s(), datetime.now(UTC)
        return [
            node_to_proto(each, now, now_s, self._control_plane_id)
            for each in self._fleet.watchers()
        ]

    def _elsewhere(self) -> Iterable[pb.Node]:
        for state in (self._others.states() if self._others else {}).values():
            try:
                yield pb.Node.FromString(state)
            except DecodeError:
                # Written by another version: its node is shown again once that one is replaced.
                continue

    async def _name_organizations(self, nodes: Iterable[pb.Node]) -> None:
        ids = {organization_id for node in nodes for organization_id in node.organizations}
        if not ids:
            return
        async with self._store.reading() as session:
            found = await session.exec(
                select(Organization.id, Organization.name).where(col(Organization.id).in_(ids))
            )
            names = dict(found.all())
        for node in nodes:
            # One that was deleted is shown by its id until the node is told.
            node.organizations[:] = sorted(names.get(each, each) for each in node.organizations)
