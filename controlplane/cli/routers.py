"""`tollkeeper router`: ordered sets of rules."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Force, Name, OfOrganization, Output
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Record, record_of
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import router_service_pb2 as pb
    from tollkeeper.admin.v1 import router_service_pb2_grpc as rpc
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.router_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.router_service_pb2_grpc")

app = new_app("Routers: ordered sets of rules, which pick the provider of a call.")

_COLUMNS = ("name", "id", "gateway_metadata", "rules")

Metadata: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--gateway-metadata/--no-gateway-metadata",
        help="Answers carry a body field with what the gateway did.",
    ),
]


@app.command(epilog=example("router create acme/r1"))
@waits
def create(name: Name, gateway_metadata: Metadata = False, output: Output = Format.TABLE) -> None:
    """Create a router without rules: `tollkeeper rule create` adds them."""
    with admin_channel() as channel:
        service = rpc.RouterServiceStub(channel)
        router = pb.Router(name=name, gateway_metadata=gateway_metadata)
        print_one(service.CreateRouter(pb.CreateRouterRequest(router=router)), output)


@app.command(epilog=example("router get acme/r1 -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show a router and its rules."""
    with admin_channel() as channel:
        service = rpc.RouterServiceStub(channel)
        print_one(service.GetRouter(pb.GetRouterRequest(name=name)), output)


@app.command("list", epilog=example("router list --org acme"))
def list_all(org: OfOrganization = "", output: Output = Format.TABLE) -> None:
    """List routers, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.RouterServiceStub(channel).ListRouters,
            pb.ListRoutersRequest(organization=org),
            lambda page: page.routers,
        )
        if output is Format.TABLE:
            print_many((_row(router) for router in found), output, _COLUMNS)
        else:
            print_many(found, output, _COLUMNS)


@app.command(epilog=example("router update acme/r1 --gateway-metadata"))
@waits
def update(
    name: Name,
    gateway_metadata: Metadata,
    output: Output = Format.TABLE,
) -> None:
    """Change a router. Its rules have commands of their own."""
    with admin_channel() as channel:
        request = pb.UpdateRouterRequest(
            router=pb.Router(name=name, gateway_metadata=gateway_metadata),
            update_mask=field_mask_pb2.FieldMask(paths=["gateway_metadata"]),
        )
        print_one(rpc.RouterServiceStub(channel).UpdateRouter(request), output)


@app.command(epilog=example("router delete acme/r1"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete a router and its rules."""
    with admin_channel() as channel:
        service = rpc.RouterServiceStub(channel)
        print_one(service.DeleteRouter(pb.DeleteRouterRequest(name=name, force=force)), output)


def _row(router: "pb.Router") -> Record:
    """Return a router for a table, with how many rules it has."""
    return {**record_of(router), "rules": len(router.rules)}
