"""`tollkeeper limit`: how much a subject may use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import GivenLayers, LayerName, empty_limit, takes_layers
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.options import Output
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Record, record_of
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    import grpc
    from tollkeeper.admin.v1 import limit_service_pb2 as pb
    from tollkeeper.admin.v1 import limit_service_pb2_grpc as rpc
    from tollkeeper.common.v1.limits_pb2 import Limit
else:
    pb = imported_on_use("tollkeeper.admin.v1.limit_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.limit_service_pb2_grpc")

app = new_app("Limits of the service, of organizations, users and keys.")

_COLUMNS = ("subject", "unit", "window", "capacity", "soft", "shadow")

User: TypeAlias = Annotated[str | None, typer.Option("--user", help="Of this user: acme/alice.")]
Organization: TypeAlias = Annotated[
    str | None, typer.Option("--org", help="Of this organization: acme.")
]
Key: TypeAlias = Annotated[
    str | None, typer.Option("--key", help="Of this key: acme/alice/laptop.")
]
Service: TypeAlias = Annotated[bool, typer.Option("--global", help="Of the whole service.")]


@app.command(
    "set",
    epilog=example(
        "limit set --user acme/alice --requests-per-minute 5 --tokens-per-day 100000",
        "limit set --org acme --monthly-budget-usd 100 --soft",
    ),
)
@takes_layers
def set_given(
    layers: GivenLayers,
    user: User = None,
    org: Organization = None,
    key: Key = None,
    whole_service: Service = False,
    output: Output = Format.TABLE,
) -> None:
    """Set the given limits of a subject, and leave its others as they are.

    Counters go on: a lowered limit counts what was used already.
    """
    subject = _subject(user, org, key, whole_service)
    limits = layers.limits()
    if not limits:
        raise typer.BadParameter("give at least one limit, such as --requests-per-day 50")
    with admin_channel() as channel:
        _print(set_limits(channel, subject, limits), output)


@app.command(epilog=example("limit get --user acme/alice", "limit get --global -o json"))
def get(
    user: User = None,
    org: Organization = None,
    key: Key = None,
    whole_service: Service = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the limits that a subject has of its own."""
    subject = _subject(user, org, key, whole_service)
    with admin_channel() as channel:
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
    whole_service: Service = False,
    only: Annotated[
        list[LayerName] | None, typer.Option(help="This one; repeat it. All without it.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Remove limits of a subject, which then has the defaults of its tier or of the service."""
    subject = _subject(user, org, key, whole_service)
    with admin_channel() as channel:
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


def _subject(user: str | None, org: str | None, key: str | None, whole_service: bool) -> str:
    named = {"user": user, "organization": org, "key": key}
    subjects = [f"{kind}:{name}" for kind, name in named.items() if name is not None]
    if whole_service:
        subjects.append("global")
    if len(subjects) != 1:
        raise typer.BadParameter("give exactly one of --user, --org, --key and --global")
    return subjects[0]


def _print(limits: "pb.SubjectLimits", output: Format) -> None:
    """Print one subject's limits: an object, or a table with one row for each limit."""
    if output is Format.TABLE:
        print_many(_rows(limits), output, _COLUMNS)
    else:
        print_one(limits, output)


def _rows(limits: "pb.SubjectLimits") -> list[Record]:
    return [{"subject": limits.subject, **_row(record_of(limit))} for limit in limits.limits]


def _row(limit: Record) -> Record:
    capacity = limit["capacity"]
    if limit["unlimited"]:
        limit["capacity"] = "unlimited"
    elif limit["unit"] == "spend" and isinstance(capacity, int):
        limit["capacity"] = f"{usd_from_nanousd(capacity)} USD"
    return limit
