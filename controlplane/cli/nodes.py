"""`tollkeeper node`: the data planes, which are connected and which may be."""

from typing import TYPE_CHECKING

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.node_joining import add_commands
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_many
from controlplane.cli.plain import Record, record_of
from controlplane.cli.status_report import lag_revisions, wanted_of
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import node_service_pb2 as pb
    from tollkeeper.admin.v1 import node_service_pb2_grpc as rpc
    from tollkeeper.common.v1.position_pb2 import Position
else:
    pb = imported_on_use("tollkeeper.admin.v1.node_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.node_service_pb2_grpc")

app = new_app("Nodes: the data planes, which are connected and which may be.")

_COLUMNS = (
    "node_id",
    "version",
    "revision",
    "digest",
    "in_step",
    "lag_ms",
    "staleness",
    "control_plane_id",
    "heard_at",
    "not_ready",
    "maintains_counters",
    "unreported_records",
    "quarantined",
    "refused_at",
    "refusal",
    "problems",
)


@app.command("list", epilog=example("node list -o json"))
def list_all(output: Output = Format.TABLE) -> None:
    """List the connected data planes, and how far each one follows the configuration."""
    with admin_channel() as channel:
        response = rpc.NodeServiceStub(channel).ListNodes(pb.ListNodesRequest())
        print_many([_row(node, response.current) for node in response.nodes], output, _COLUMNS)


add_commands(app)


def _row(node: "pb.Node", current: "Position") -> Record:
    """Return a node and where it stands beside the content that it should have."""
    wanted = wanted_of(node, current)
    return {
        **record_of(node),
        "revision": node.applied.revision,
        "digest": node.applied.digest.hex(),
        "lag_revisions": lag_revisions(node.applied, wanted),
        "in_step": node.applied == wanted,
    }
