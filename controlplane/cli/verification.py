"""`tollkeeper verify`: whether every counter is what the ledger says, and the ledger's sums what its rows add up to."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.limits import MAINTENANCE_S
from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.options import Output
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.plain import Plain, Record, record_of

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import operations_service_pb2 as pb
    from tollkeeper.admin.v1 import operations_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.operations_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.operations_service_pb2_grpc")

# Longer than a control plane tries; a ledger of some millions takes minutes.
_RECOUNT_S: Final = 1_830.0
_AMOUNTS: Final = ("settled", "ledger", "held", "reserved")
_COLUMNS: Final = ("subject", "unit", "window", "period_id", *_AMOUNTS, "repaired")


def verify(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set what differs to what the ledger says, also downwards."),
    ] = False,
    recount: Annotated[
        bool,
        typer.Option(
            "--recount",
            help="First set the ledger's own sums to what its rows add up to: after an upgrade during which a control "
            "plane of the version before went on running. Some 7 s for 100,000 requests, in which usage waits to be "
            "written; on SQLite, administrators are refused too.",
        ),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Compare every counter with the ledger, and show which differ: none, as a rule.

    Comparing needs no more than permission to read. Exit code 1 when differences are left.
    """
    recounted: int | None = None
    with admin_channel() as channel:
        service = rpc.OperationsServiceStub(channel)
        if recount:
            recounted = service.RecountUsage(pb.RecountUsageRequest(), timeout=_RECOUNT_S).requests
            # Said at once: it is done, whether or not anybody can compare counters now.
            note(f"The sums of {recounted} requests were recounted.")
        request = pb.VerifyCountersRequest(repair=repair)
        found = service.VerifyCounters(request, timeout=MAINTENANCE_S)
    rows = [_row(each) for each in found.differences]
    repaired = sum(each.difference.repaired for each in found.differences)
    if output is Format.TABLE:
        if rows:
            print_many([_in_dollars(row) for row in rows], output, _COLUMNS)
            typer.echo()
        typer.echo(_sentence(found.differing, found.compared, repaired))
    else:
        listed: list[Plain] = [*rows]
        fields = {**record_of(found), "differences": listed, "recounted_requests": recounted}
        print_one(fields, output)
    if found.differing > len(rows):
        note(f"Only the first {len(rows)} differences are listed.")
    if found.differing > repaired:
        raise typer.Exit(1)


def _row(named: "pb.NamedDifference") -> Record:
    """Return a difference as one flat object: whom it is about, which counter, and the figures."""
    difference = record_of(named.difference)
    del difference["counter"]
    return {"subject": named.subject, **record_of(named.difference.counter), **difference}


def _in_dollars(row: Record) -> Record:
    if row["unit"] != "spend":
        return row
    return {**row, **{name: _usd(row[name]) for name in _AMOUNTS}}


def _usd(nanousd: Plain) -> Plain:
    return f"{usd_from_nanousd(nanousd)} USD" if isinstance(nanousd, int) else nanousd


def _sentence(differing: int, compared: int, repaired: int) -> str:
    noun = "difference" if differing == 1 else "differences"
    counters = "counter" if compared == 1 else "counters"
    sentence = f"{differing} {noun} in {compared} {counters}"
    return f"{sentence}, {repaired} repaired" if repaired else sentence
