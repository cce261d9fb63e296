"""`tollkeeper limit`: how much a subject may use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import (
    GivenLayers,
    LayerName,
    empty_limit,
    limit_row,
    takes_layers,
)
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Record
from controlplane.cli.tier_layers import Counted, change_limits, remove_user_limits
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    import grpc
    from tollkeeper.admin.v1 import changes_pb2, tier_service_pb2, tier_service_pb2_grpc
    from tollkeeper.admin.v1 import limit_service_pb2 as pb
    from tollkeeper.admin.v1 import limit_service_pb2_grpc as rpc
    from tollkeeper.common.v1.limits_pb2 import Limit
else:
    changes_pb2 = imported_on_use("tollkeeper.admin.v1.changes_pb2")
    tier_service_pb2 = imported_on_use("tollkeeper.admin.v1.tier_service_pb2")
    tier_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.tier_service_pb2_grpc")
    pb = imported_on_use("tollkeeper.admin.v1.limit_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.limit_service_pb2_grpc")

app = new_app("Limits of the service, of organizations, users, keys, devices, addresses and tiers.")

_COLUMNS = ("subject", "unit", "window", "capacity", "soft", "shadow")

User: TypeAlias = Annotated[str | None, typer.Option("--user", help="Of this user: acme/alice.")]
Organization: TypeAlias = Annotated[
    str | None, typer.Option("--org", help="Of this organization: acme.")
]
Key: TypeAlias = Annotated[
    str | None, typer.Option("--key", help="Of this key: acme/alice/laptop.")
]
Device: TypeAlias = Annotated[
    str | None, typer.Option("--device", metavar="ID", help="Of this device, by its id.")
]
ClientAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--ip", metavar="ADDRESS", help="Of this client address; of IPv6, of the /64 it is in."
    ),
]
Tier: TypeAlias = Annotated[
    str | None, typer.Option("--tier", help="Of each user of this tier: free, paid.")
]
Service: TypeAlias = Annotated[bool, typer.Option("--global", help="Of the whole service.")]


@app.command(
    "set",
    epilog=example(
        "limit set --user acme/alice --requests-per-minute 5 --tokens-per-day 100000",
        "limit set --org acme --monthly-budget-usd 100 --soft",
        "limit set --ip 203.0.113.7 --requests-per-day 100",
        "limit set --tier free --requests-per-day 500",
    ),
)
@takes_layers
def set_given(
    layers: GivenLayers,
    user: User = None,
    org: Organization = None,
    key: Key = None,
    device: Device = None,
    ip: ClientAddress = None,
    tier: Tier = None,
    whole_service: Service = False,
    output: Output = Format.TABLE,
) -> None:
    """Set the given limits of a subject, and leave its others as they are.

    Counters go on: a lowered limit counts what was used already. A tier's are those of each of its users;
    `tier update` sets its others.
    """
    subject = _subject(user, org, key, device, ip, tier, whole_service)
    limits = layers.limits()
    if not limits:
        raise typer.BadParameter("give at least one limit, such as --requests-per-day 50")
    with admin_channel() as channel:
        if tier is not None:
            _print(_of_users(change_limits(channel, tier, {Counted.USER: limits})), output)
        else:
            _print(set_limits(channel, subject, limits), output)


@app.command(
    epilog=example(
        "limit get --user acme/alice", "limit get --global -o json", "limit get --tier free"
    )
)
def get(
    user: User = None,
    org: Organization = None,
    key: Key = None,
    device: Device = None,
    ip: ClientAddress = None,
    tier: Tier = None,
    whole_service: Service = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the limits that a subject has of its own."""
    subject = _subject(user, org, key, device, ip, tier, whole_service)
    with admin_channel() as channel:
        if tier is not None:
            tiers = tier_service_pb2_grpc.TierServiceStub(channel)
            found = tiers.GetTier(tier_service_pb2.GetTierRequest(name=tier))
            _print(_of_users(found), output)
        else:
            service = rpc.LimitServiceStub(channel)
            _print(service.GetLimits(pb.GetLimitsRequest(subject=subject)), output)


@app.command("list", epilog=example("limit list"))
def list_all(output: Output = Format.TABLE) -> None:
    """List all subjects that have limits, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.LimitServiceStub(channel).ListLimits,
            pb.ListLimitsRequest(),
            lambda page: page.limits,
        )
        if output is Format.TABLE:
            print_many((row for limits in found for row in _rows(limits)), output, _COLUMNS)
        else:
            print_many(found, output, _COLUMNS)


@app.command(
    epilog=example(
        "limit delete --user acme/alice --only tokens-per-day",
        "limit delete --key acme/alice/laptop",
    )
)
def delete(
    user: User = None,
    org: Organization = None,
    key: Key = None,
    device: Device = None,
    ip: ClientAddress = None,
    tier: Tier = None,
    whole_service: Service = False,
    only: Annotated[
        list[LayerName] | None, typer.Option(help="This one; repeat it. All without it.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Remove limits of a subject, which then has the defaults of its tier or of the service."""
    subject = _subject(user, org, key, device, ip, tier, whole_service)
    with admin_channel() as channel:
        if tier is not None:
            revision = remove_user_limits(channel, tier, only).revision
            print_one(changes_pb2.DeleteResult(revision=revision), output)
        else:
            service = rpc.LimitServiceStub(channel)
            limits = [empty_limit(name) for name in only or ()]
            request = pb.DeleteLimitsRequest(subject=subject, limits=limits)
            print_one(service.DeleteLimits(request), output)


def set_limits(
    channel: "grpc.Channel", subject: str, limits: "Sequence[Limit]"
) -> "pb.SubjectLimits":
    """Set limits of a subject, such as `user:acme/alice`, and return all that it has."""
    request = pb.SetLimitsRequest(limits=pb.SubjectLimits(subject=subject, limits=limits))
    return rpc.LimitServiceStub(channel).SetLimits(request)


def _subject(
    user: str | None,
    org: str | None,
    key: str | None,
    device: str | None,
    ip: str | None,
    tier: str | None,
    whole_service: bool,
) -> str:
    named = {
        "user": user,
        "organization": org,
        "key": key,
        "device": device,
        "ip": ip,
        "tier": tier,
    }
    subjects = [f"{kind}:{name}" for kind, name in named.items() if name is not None]
    if whole_service:
        subjects.append("global")
    if len(subjects) != 1:
        raise typer.BadParameter(
            "give exactly one of --user, --org, --key, --device, --ip, --tier and --global"
        )
    return subjects[0]


def _of_users(tier: "tier_service_pb2.Tier") -> "pb.SubjectLimits":
    """Return what a tier sets for each of its users, in the form of other subjects' limits."""
    return pb.SubjectLimits(
        subject=f"tier:{tier.name}",
        limits=tier.user_limits,
        revision=tier.revision,
        etag=tier.etag,
        updated_at=tier.updated_at if tier.HasField("updated_at") else None,
    )


def _print(limits: "pb.SubjectLimits", output: Format) -> None:
    """Print one subject's limits: an object, or a table with one row for each limit."""
    if output is Format.TABLE:
        print_many(_rows(limits), output, _COLUMNS)
    else:
        print_one(limits, output)


def _rows(limits: "pb.SubjectLimits") -> list[Record]:
    return [{"subject": limits.subject, **limit_row(limit)} for limit in limits.limits]
