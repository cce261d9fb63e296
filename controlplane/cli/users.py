"""`tollkeeper user`: users of organizations."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import GivenLayers, takes_layers
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import (
    Force,
    Name,
    OfOrganization,
    Output,
    require_changes,
    tier_name,
)
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.subject_limits import print_resets, reset_counters, set_limits
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import user_service_pb2 as pb
    from tollkeeper.admin.v1 import user_service_pb2_grpc as rpc
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.user_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.user_service_pb2_grpc")

app = new_app("Users: the people and programs of an organization.")

_COLUMNS = ("name", "id", "email", "tier", "suspended")


Email: TypeAlias = Annotated[str | None, typer.Option(help="Where to reach them.")]
OfTier: TypeAlias = Annotated[
    str | None,
    typer.Option(
        parser=tier_name,
        metavar="TIER",
        help="Whose limits they have where they have none of their own; 'none' for the service's defaults.",
        show_default=False,
    ),
]


@app.command(
    epilog=example(
        "user create acme/alice --email alice@example.com --tier free --monthly-budget-usd 0.05"
    )
)
@waits
@takes_layers
def create(
    name: Name,
    layers: GivenLayers,
    email: Email = None,
    tier: OfTier = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a user, with their limits.

    A limit that is not given comes from the tier, or from the service's defaults.
    """
    limits = layers.limits()
    user, _ = _given(name, email, tier)
    with admin_channel() as channel:
        service = rpc.UserServiceStub(channel)
        print_one(service.CreateUser(pb.CreateUserRequest(user=user, limits=limits)), output)


@app.command(epilog=example("user get acme/alice -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show a user."""
    with admin_channel() as channel:
        service = rpc.UserServiceStub(channel)
        print_one(service.GetUser(pb.GetUserRequest(name=name)), output)


@app.command("list", epilog=example("user list --org acme"))
def list_all(org: OfOrganization = "", output: Output = Format.TABLE) -> None:
    """List users, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.UserServiceStub(channel).ListUsers,
            pb.ListUsersRequest(organization=org),
            lambda page: page.users,
        )
        print_many(found, output, _COLUMNS)


@app.command(
    epilog=example(
        "user update acme/alice --tier paid --daily-requests none",
        "user update acme/alice --tier none",
    )
)
@waits
@takes_layers
def update(
    name: Name,
    layers: GivenLayers,
    email: Email = None,
    tier: OfTier = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else. Limits are set first."""
    limits = layers.limits()
    user, paths = _given(name, email, tier)
    require_changes(limits, paths)
    with admin_channel() as channel:
        service = rpc.UserServiceStub(channel)
        if limits:
            set_limits(channel, f"user:{name}", limits)
        if paths:
            mask = field_mask_pb2.FieldMask(paths=paths)
            print_one(service.UpdateUser(pb.UpdateUserRequest(user=user, update_mask=mask)), output)
        else:
            print_one(service.GetUser(pb.GetUserRequest(name=name)), output)


@app.command(epilog=example("user suspend acme/alice"))
@waits
def suspend(name: Name, output: Output = Format.TABLE) -> None:
    """Refuse every call of a user until they are activated again."""
    _set_suspended(name, True, output)


@app.command(epilog=example("user activate acme/alice"))
@waits
def activate(name: Name, output: Output = Format.TABLE) -> None:
    """End the suspension of a user."""
    _set_suspended(name, False, output)


@app.command("reset-quota", epilog=example("user reset-quota acme/alice"))
@waits
def reset_quota(name: Name, output: Output = Format.TABLE) -> None:
    """Let all counters of a user start anew: of requests, of tokens and of money.

    Those of their organization, keys and devices go on. What was spent stays in the ledger.
    """
    with admin_channel() as channel:
        print_resets(reset_counters(channel, f"user:{name}", ()), output)


@app.command(epilog=example("user delete acme/alice --force"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete a user."""
    with admin_channel() as channel:
        service = rpc.UserServiceStub(channel)
        print_one(service.DeleteUser(pb.DeleteUserRequest(name=name, force=force)), output)


def _set_suspended(name: str, suspended: bool, output: Format) -> None:
    with admin_channel() as channel:
        request = pb.UpdateUserRequest(
            user=pb.User(name=name, suspended=suspended),
            update_mask=field_mask_pb2.FieldMask(paths=["suspended"]),
        )
        print_one(rpc.UserServiceStub(channel).UpdateUser(request), output)


def _given(name: str, email: str | None, tier: str | None) -> tuple["pb.User", list[str]]:
    """Return the user as far as options describe them, and which fields they named."""
    given = {"email": email, "tier": tier}
    user = pb.User(name=name, email=email or "", tier=tier or "")
    return user, [field for field, value in given.items() if value is not None]
