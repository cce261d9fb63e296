"""`tollkeeper org`: organizations."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import GivenLayers, takes_layers
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Force, Name, Output, require_changes
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.subject_limits import set_limits
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from google.protobuf import field_mask_pb2
    from tollkeeper.admin.v1 import organization_service_pb2 as pb
    from tollkeeper.admin.v1 import organization_service_pb2_grpc as rpc
    from tollkeeper.config.v1 import resources_pb2
else:
    field_mask_pb2 = imported_on_use("google.protobuf.field_mask_pb2")
    pb = imported_on_use("tollkeeper.admin.v1.organization_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.organization_service_pb2_grpc")
    resources_pb2 = imported_on_use("tollkeeper.config.v1.resources_pb2")

app = new_app("Organizations, which own users, keys, providers and routers.")

_COLUMNS = ("name", "id", "time_zone", "on_limits_unavailable", "paused")


class Policy(StrEnum):
    """What happens to calls while counters cannot be read."""

    CLOSED = "closed"
    OPEN = "open"


TimeZone: TypeAlias = Annotated[
    str | None, typer.Option(help="IANA name, for the days and months of its limits.")
]
OnLimitsUnavailable: TypeAlias = Annotated[
    Policy | None,
    typer.Option(help="While counters cannot be read: refuse (closed) or admit (open)."),
]
Paused: TypeAlias = Annotated[
    bool | None, typer.Option("--paused/--not-paused", help="Refuse every call.")
]
OutputCap: TypeAlias = Annotated[
    int | None,
    typer.Option(min=0, max=10_000_000, help="The output cap that a hard budget sends upstream."),
]


@app.command(epilog=example("org create acme --monthly-budget-usd 100 --time-zone Europe/Paris"))
@waits
@takes_layers
def create(
    name: Name,
    layers: GivenLayers,
    time_zone: TimeZone = None,
    on_limits_unavailable: OnLimitsUnavailable = None,
    paused: Paused = None,
    default_output_cap_tokens: OutputCap = None,
    output: Output = Format.TABLE,
) -> None:
    """Create an organization, with its limits.

    Budgets are hard unless --soft. Without a time zone it is UTC, and while counters cannot be read it is closed.
    """
    limits = layers.limits()
    organization, _ = _given(
        name, time_zone, on_limits_unavailable, paused, default_output_cap_tokens
    )
    with admin_channel() as channel:
        service = rpc.OrganizationServiceStub(channel)
        request = pb.CreateOrganizationRequest(organization=organization, limits=limits)
        print_one(service.CreateOrganization(request), output)


@app.command(epilog=example("org get acme -o json"))
def get(name: Name, output: Output = Format.TABLE) -> None:
    """Show an organization."""
    with admin_channel() as channel:
        service = rpc.OrganizationServiceStub(channel)
        print_one(service.GetOrganization(pb.GetOrganizationRequest(name=name)), output)


@app.command("list", epilog=example("org list"))
def list_all(output: Output = Format.TABLE) -> None:
    """List all organizations, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.OrganizationServiceStub(channel).ListOrganizations,
            pb.ListOrganizationsRequest(),
            lambda page: page.organizations,
        )
        print_many(found, output, _COLUMNS)


@app.command(epilog=example("org update acme --monthly-budget-usd 200", "org update acme --paused"))
@waits
@takes_layers
def update(
    name: Name,
    layers: GivenLayers,
    time_zone: TimeZone = None,
    on_limits_unavailable: OnLimitsUnavailable = None,
    paused: Paused = None,
    default_output_cap_tokens: OutputCap = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what is given, and nothing else. Limits are set first."""
    limits = layers.limits()
    organization, paths = _given(
        name, time_zone, on_limits_unavailable, paused, default_output_cap_tokens
    )
    require_changes(limits, paths)
    with admin_channel() as channel:
        service = rpc.OrganizationServiceStub(channel)
        if limits:
            set_limits(channel, f"organization:{name}", limits)
        if paths:
            mask = field_mask_pb2.FieldMask(paths=paths)
            request = pb.UpdateOrganizationRequest(organization=organization, update_mask=mask)
            print_one(service.UpdateOrganization(request), output)
        else:
            print_one(service.GetOrganization(pb.GetOrganizationRequest(name=name)), output)


@app.command(epilog=example("org delete acme --force"))
@waits
def delete(name: Name, force: Force = False, output: Output = Format.TABLE) -> None:
    """Delete an organization."""
    with admin_channel() as channel:
        service = rpc.OrganizationServiceStub(channel)
        request = pb.DeleteOrganizationRequest(name=name, force=force)
        print_one(service.DeleteOrganization(request), output)


def _given(
    name: str,
    time_zone: str | None,
    policy: Policy | None,
    paused: bool | None,
    output_cap_tokens: int | None,
) -> tuple["pb.Organization", list[str]]:
    """Return the organization as far as options describe it, and which fields they named."""
    organization = pb.Organization(name=name)
    paths = []
    if time_zone is not None:
        organization.time_zone = time_zone
        paths.append("time_zone")
    if policy is not None:
        organization.on_limits_unavailable = resources_pb2.LimitsUnavailablePolicy.Value(
            f"LIMITS_UNAVAILABLE_POLICY_{policy.name}"
        )
        paths.append("on_limits_unavailable")
    if paused is not None:
        organization.paused = paused
        paths.append("paused")
    if output_cap_tokens is not None:
        organization.default_output_cap_tokens = output_cap_tokens
        paths.append("default_output_cap_tokens")
    return organization, paths
