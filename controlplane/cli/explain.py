"""`tollkeeper explain`: everything that the ledger knows of one request."""

from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.explanation import (
    LAYER_COLUMNS,
    caller_and_route,
    document,
    layer_in_dollars,
    layer_rows,
    price_and_charge,
    reasons,
)
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, fail, one_line, print_many, print_one

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import usage_service_pb2 as pb
    from tollkeeper.admin.v1 import usage_service_pb2_grpc as rpc
    from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord
else:
    pb = imported_on_use("tollkeeper.admin.v1.usage_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.usage_service_pb2_grpc")


def explain(
    request_id: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST_ID", help="As `x-request-id` and `logs` show it.", show_default=False
        ),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Explain one request: who called, which limits it passed with which figures, and what it cost and why."""
    if not request_id:
        raise typer.BadParameter("give the id of a request")
    with admin_channel() as channel:
        request = pb.ListRequestsRequest(
            filter=pb.RequestFilter(request_id=request_id), page_size=1
        )
        found = rpc.UsageServiceStub(channel).ListRequests(request).requests
    if not found:
        fail(
            f"the ledger has no request {request_id}: it has those that were admitted, "
            "once they are over"
        )
    record = found[0]
    if output is Format.TABLE:
        _print_sections(record)
    else:
        print_one(document(record), output)


def _print_sections(record: "UsageRecord") -> None:
    print_one(caller_and_route(record), Format.TABLE)
    typer.echo()
    layers = layer_rows(record)
    if layers:
        print_many(map(layer_in_dollars, layers), Format.TABLE, LAYER_COLUMNS)
        typer.echo()
    print_one(price_and_charge(record), Format.TABLE)
    typer.echo()
    for sentence in reasons(record):
        typer.echo(one_line(sentence))
