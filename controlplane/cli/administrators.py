"""`tollkeeper admin`: who may administer."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Name, Output
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import record_of
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import administrator_service_pb2 as pb
    from tollkeeper.admin.v1 import administrator_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.administrator_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.administrator_service_pb2_grpc")

app = new_app("Administrators: who may run these commands.")

_COLUMNS = ("name", "id", "role", "created_at")


class RoleName(StrEnum):
    """What an administrator may do, in the whole service."""

    OWNER = "owner"
    ADMIN = "admin"
    OPERATOR = "operator"
    BILLING = "billing"
    AUDITOR = "auditor"


@app.command(epilog=example("admin create ops-bot --role operator"))
def create(
    name: Name,
    role: Annotated[
        RoleName,
        typer.Option(
            help="All read everything. owner: changes everything; admin: all but administrators; "
            "operator: users, keys, limits, routers; billing: limits, prices; auditor: nothing.",
            show_default=False,
        ),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Create an administrator and show the token, this once. It is kept nowhere."""
    with admin_channel() as channel:
        administrator = pb.Administrator(name=name, role=pb.Role.Value(f"ROLE_{role.name}"))
        created = rpc.AdminServiceStub(channel).CreateAdministrator(
            pb.CreateAdministratorRequest(administrator=administrator)
        )
        print_one({**record_of(created.administrator), "token": created.token}, output)
        note("The token is shown this once: keep it now.")


@app.command("list", epilog=example("admin list"))
def list_all(output: Output = Format.TABLE) -> None:
    """List all administrators, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.AdminServiceStub(channel).ListAdministrators,
            pb.ListAdministratorsRequest(),
            lambda page: page.administrators,
        )
        print_many(found, output, _COLUMNS)


@app.command(epilog=example("admin delete ops-bot"))
def delete(name: Name, output: Output = Format.TABLE) -> None:
    """Remove an administrator, whose token is refused from the next call on."""
    with admin_channel() as channel:
        request = pb.DeleteAdministratorRequest(name=name)
        print_one(rpc.AdminServiceStub(channel).DeleteAdministrator(request), output)
