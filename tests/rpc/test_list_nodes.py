"""`ListNodes`: data planes of every control plane in one list."""

from collections.abc import Mapping
from typing import Any

from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as config_pb

from controlplane.rpc.changing import Backend
from controlplane.rpc.node_admission import NodeProof
from controlplane.rpc.node_enrollment import Joining
from controlplane.rpc.nodes import NodeServicer
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.identity import NodeIdentityClaim
from controlplane.snapshots.opening import secret_opener
from controlplane.store.database import Store
from tests.distribution.conftest import organization
from tests.rpc.admin_api import MASTER_KEY, RecordingRevoker

SEALER = Sealer([MasterKey(MASTER_KEY)])


class OtherNodes:
    def __init__(self, *nodes: pb.Node, **broken: bytes) -> None:
        self._states = {node.node_id: node.SerializeToString() for node in nodes} | broken

    def states(self) -> Mapping[str, bytes]:
        return self._states


def hello(node_id: str, revision: int = 0) -> config_pb.Hello:
    applied = position_pb2.Position(config_epoch="e", revision=revision)
    return config_pb.Hello(node_id=node_id, version="1", protocol_version=2, applied=applied)


async def listed(store: Store, fleet: Fleet, others: OtherNodes | None) -> list[pb.Node]:
    backend = Backend(store, SEALER, RecordingRevoker(), store.clock)
    servicer = NodeServicer(backend, Joining(NodeProof.SHARED_TOKEN), fleet, "cp-1", others)
    context: Any = None
    answer = await servicer.ListNodes(pb.ListNodesRequest(), context)
    return list(answer.nodes)


def fleet() -> Fleet:
    return Fleet(secret_opener(SEALER))


async def test_nodes_of_other_control_planes_are_listed_beside_the_own(store: Store) -> None:
    own = fleet()
    own.attach(hello("b", revision=5))
    others = OtherNodes(
        pb.Node(node_id="a", control_plane_id="cp-2"),
        # It moved here a moment ago; what is seen here is newer than what was told there.
        pb.Node(node_id="b", control_plane_id="cp-2"),
        pb.Node(node_id="c", control_plane_id="cp-3", refusal="guard"),
        z=b"\xff of another version",
    )

    nodes = await listed(store, own, others)

    assert [(node.node_id, node.control_plane_id) for node in nodes] == [
        ("a", "cp-2"),
        ("b", "cp-1"),
        ("c", "cp-3"),
    ]
    assert nodes[1].applied.revision == 5
    assert nodes[1].HasField("connected_at")
    assert nodes[2].refusal == "guard"


async def test_organizations_are_named_wherever_the_node_is_connected(store: Store) -> None:
    async with store.transaction("test", "Write") as tx:
        tx.add(organization("org-1", "acme"))
        tx.add(organization("org-2", "other"))
    own = fleet()
    own.attach(hello("a"), NodeIdentityClaim(organization_ids=frozenset({"org-2", "org-1"})))
    others = OtherNodes(pb.Node(node_id="b", organizations=["org-2", "deleted"]))

    a, b = await listed(store, own, others)

    assert list(a.organizations) == ["acme", "other"]
    assert list(b.organizations) == ["deleted", "other"]


async def test_a_control_plane_alone_lists_its_own(store: Store) -> None:
    own = fleet()
    own.attach(hello("a"))

    (node,) = await listed(store, own, None)

    assert (node.node_id, list(node.organizations)) == ("a", [])
    # Nothing is published: it has what there is.
    assert (node.staleness, node.lag_ms) == (pb.STALENESS_FRESH, 0)
