"""`tollkeeper status`: how the control plane, the data planes and a gateway are."""

import http.client
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer

from controlplane.cli.connection import admin_channel, admin_settings, setting
from controlplane.cli.health import readiness
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.plain import Plain, Record
from controlplane.cli.status_report import (
    Gateway,
    control_plane_row,
    data_plane_row,
    faults,
    is_settled,
    remarks,
)

if TYPE_CHECKING:
    import grpc
    from tollkeeper.admin.v1 import node_service_pb2, operations_service_pb2
    from tollkeeper.admin.v1 import node_service_pb2_grpc as node_rpc
    from tollkeeper.admin.v1 import operations_service_pb2_grpc as operations_rpc
else:
    node_service_pb2 = imported_on_use("tollkeeper.admin.v1.node_service_pb2")
    operations_service_pb2 = imported_on_use("tollkeeper.admin.v1.operations_service_pb2")
    node_rpc = imported_on_use("tollkeeper.admin.v1.node_service_pb2_grpc")
    operations_rpc = imported_on_use("tollkeeper.admin.v1.operations_service_pb2_grpc")

_COLUMNS: Final = (
    "node",
    "version",
    "revision",
    "is_current",
    "lag_ms",
    "staleness",
    "control_plane",
    "heard_ms_ago",
    "redis",
    "maintains_counters",
    "not_ready",
    "unreported_records",
    "quarantined",
    "refusal",
    "problems",
)
_GATEWAY_PATIENCE_S: Final = 2.0
# A change reaches every node within a second; what is not there after two will not come by itself.
_SETTLING_S: Final = 2.0
_PAUSE_S: Final = 0.1


def status(output: Output = Format.TABLE) -> None:
    """Show the control plane and the data planes, and say what is wrong.

    Exit code 1 when something is wrong that needs you: each is a sentence on stderr. With TOLLKEEPER_URL it also
    asks the gateway there whether it is ready.
    """
    gateway = _gateway()
    try:
        address = str(admin_settings().address)
        with admin_channel() as channel:
            operations = operations_rpc.OperationsServiceStub(channel)
            service = operations.GetServiceStatus(operations_service_pb2.GetServiceStatusRequest())
            nodes = _settled_nodes(channel)
    except typer.Exit:
        # Why is said already; whether callers are served all the same is worth knowing now.
        if gateway is not None:
            note(gateway.sentence())
        raise
    now = datetime.now(UTC)
    control_plane = control_plane_row(service, address)
    data_planes = [data_plane_row(node, nodes.current, now) for node in nodes.nodes]
    _print(control_plane, data_planes, gateway, output)
    wrong = faults(service, nodes, gateway)
    for sentence in (*wrong, *remarks(service, nodes)):
        note(sentence)
    if wrong:
        raise typer.Exit(1)


def _gateway() -> Gateway | None:
    """Ask the gateway of the settings; None when they name none."""
    url = setting("URL")
    if url is None:
        return None
    try:
        return Gateway(url, readiness(url, _GATEWAY_PATIENCE_S))
    except (OSError, http.client.HTTPException):
        return Gateway(url, None)


def _settled_nodes(channel: "grpc.Channel") -> "node_service_pb2.ListNodesResponse":
    """Return the nodes once all follow; after two seconds, as they are then."""
    service = node_rpc.NodeServiceStub(channel)
    deadline_s = time.monotonic() + _SETTLING_S
    while True:
        nodes = service.ListNodes(node_service_pb2.ListNodesRequest())
        if is_settled(nodes) or time.monotonic() >= deadline_s:
            return nodes
        time.sleep(_PAUSE_S)


def _print(
    control_plane: Record, data_planes: list[Record], gateway: Gateway | None, output: Format
) -> None:
    if output is not Format.TABLE:
        rows: list[Plain] = [*data_planes]
        document: Record = {
            "control_plane": control_plane,
            "data_planes": rows,
            "gateway": gateway.row() if gateway else None,
        }
        print_one(document, output)
        return
    print_one(control_plane, output)
    typer.echo()
    print_many(data_planes, output, _COLUMNS)
    if gateway is not None:
        typer.echo()
        print_one(gateway.row(), output)
