"""`NodeService`: what the connected data planes have applied."""

from datetime import UTC, datetime, timedelta

import grpc.aio
from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as pb_grpc

from controlplane.rpc.resources import to_timestamp
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.snapshot import position_to_proto
from controlplane.snapshots.watcher import Watcher


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Shows a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def ListNodes(
        self,
        request: pb.ListNodesRequest,
        context: grpc.aio.ServicerContext[pb.ListNodesRequest, pb.ListNodesResponse],
    ) -> pb.ListNodesResponse:
        """Return the nodes that are connected to this control plane now, by node id."""
        now_s = self._fleet.now_s()
        now = datetime.now(UTC)
        return pb.ListNodesResponse(
            current=position_to_proto(self._fleet.current),
            nodes=[node_to_proto(each, now, now_s) for each in self._fleet.watchers()],
        )


def node_to_proto(watcher: Watcher, now: datetime, now_s: float) -> pb.Node:
    """Encode one node; `now` and `now_s` are the same instant on the two clocks."""
    oldest = watcher.oldest_unreported_at
    return pb.Node(
        node_id=watcher.node_id,
        version=watcher.version,
        applied=position_to_proto(watcher.applied),
        heard_at=to_timestamp(now - timedelta(seconds=now_s - watcher.heard_at_s)),
        not_ready=watcher.not_ready,
        problems=watcher.problems,
        quarantined=watcher.quarantined,
        unreported_records=watcher.unreported_records,
        limits_unavailable=watcher.limits_unavailable,
        maintains_counters=watcher.maintains_counters,
        oldest_unreported_at=to_timestamp(oldest) if oldest else None,
    )
