"""`tollkeeper tier`: sets of limits that users, devices and keys have by name."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.layers import limit_row
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import NO_TIER, Output, require_changes
from controlplane.cli.output import Format, print_many, print_one
from controlplane.cli.paging import all_pages
from controlplane.cli.plain import Record
from controlplane.cli.tier_layers import (
    Counted,
    TierLayers,
    change_limits,
    put_limits,
    takes_tier_layers,
)
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import tier_service_pb2 as pb
    from tollkeeper.admin.v1 import tier_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.tier_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.tier_service_pb2_grpc")

app = new_app("Tiers: sets of limits that users, devices and keys have by name.")

_COLUMNS = ("tier", "counts", "unit", "window", "capacity", "soft", "shadow")
_COUNTS: Final = {
    Counted.DEVICE: "each device",
    Counted.IP: "each address",
    Counted.USER: "each user",
    Counted.CREDENTIAL: "each key or device",
}

TierName: TypeAlias = Annotated[
    str, typer.Argument(help="Its name: free, paid, or one of your own.", show_default=False)
]


@app.command(
    epilog=example(
        "tier create trial --device-requests-per-day 20 --credential-requests-per-minute 5",
        "tier create team --user-monthly-budget-usd 20 --soft",
    )
)
@waits
@takes_tier_layers
def create(name: TierName, layers: TierLayers, output: Output = Format.TABLE) -> None:
    """Create a tier. It has no limits but those given.

    Flags of --device count each device, of --ip each client address, of --user each user,
    of --credential each key and each device.
    """
    if name == NO_TIER:
        raise typer.BadParameter(f"{NO_TIER!r} stands for no tier, and cannot be one's name")
    tier = pb.Tier(name=name)
    put_limits(tier, layers.limits())
    with admin_channel() as channel:
        _print(rpc.TierServiceStub(channel).CreateTier(pb.CreateTierRequest(tier=tier)), output)


@app.command(epilog=example("tier get free", "tier get free -o json"))
def get(name: TierName, output: Output = Format.TABLE) -> None:
    """Show a tier, and whom each of its limits counts."""
    with admin_channel() as channel:
        _print(rpc.TierServiceStub(channel).GetTier(pb.GetTierRequest(name=name)), output)


@app.command("list", epilog=example("tier list"))
def list_all(output: Output = Format.TABLE) -> None:
    """List all tiers, by name."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.TierServiceStub(channel).ListTiers,
            pb.ListTiersRequest(),
            lambda page: page.tiers,
        )
        if output is Format.TABLE:
            print_many((row for tier in found for row in _rows(tier)), output, _COLUMNS)
        else:
            print_many(found, output, _COLUMNS)


@app.command(
    epilog=example(
        "tier update free --device-requests-per-day 20 --credential-requests-per-minute none",
        "tier update paid --ip-requests-per-day 100000",
    )
)
@waits
@takes_tier_layers
def update(name: TierName, layers: TierLayers, output: Output = Format.TABLE) -> None:
    """Set the given limits of a tier, and leave its others as they are.

    Counters go on: a lowered limit counts what was used already.
    """
    limits = layers.limits()
    require_changes(list(limits))
    with admin_channel() as channel:
        _print(change_limits(channel, name, limits), output)


@app.command(epilog=example("tier delete trial"))
@waits
def delete(name: TierName, output: Output = Format.TABLE) -> None:
    """Delete a tier that nobody has. free and paid stay."""
    with admin_channel() as channel:
        service = rpc.TierServiceStub(channel)
        print_one(service.DeleteTier(pb.DeleteTierRequest(name=name)), output)


def _print(tier: "pb.Tier", output: Format) -> None:
    """Print one tier: an object, or a table with one row for each limit."""
    if output is Format.TABLE:
        print_many(_rows(tier), output, _COLUMNS)
    else:
        print_one(tier, output)


def _rows(tier: "pb.Tier") -> Iterator[Record]:
    """Return one row for each limit; a tier without any is a row all the same."""
    is_empty = True
    for counted in Counted:
        for limit in getattr(tier, counted.field):
            is_empty = False
            yield {"tier": tier.name, "counts": _COUNTS[counted], **limit_row(limit)}
    if is_empty:
        yield {"tier": tier.name, "counts": "nobody"}
