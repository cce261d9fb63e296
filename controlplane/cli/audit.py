"""`tollkeeper audit`: who changed what, and when."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer

from controlplane.cli.audit_values import in_words, short_text
from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output, Since, Until, timestamp_of
from controlplane.cli.output import Format, print_many
from controlplane.cli.paging import RESOURCES_PER_PAGE, all_pages
from controlplane.cli.plain import Plain, Record, object_of, record_of
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import audit_service_pb2 as pb
    from tollkeeper.admin.v1 import audit_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.audit_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.audit_service_pb2_grpc")

app = new_app("The audit log: who changed what, and when.")

_COLUMNS = ("at", "actor", "rpc", "resource", "revision", "changes")
# A table is for a glance; -o json has everything.
_MOST_SHOWN_CHANGES: Final = 3


@app.command(
    "list",
    epilog=example(
        "audit list --resource acme/alice --since 24h",
        "audit list --rpc ApproveDevice --limit 20 -o json",
    ),
)
def list_all(
    resource: Annotated[
        str,
        typer.Option(
            help="Only about this one, by name or id: acme/alice, a device's id.",
            show_default=False,
        ),
    ] = "",
    actor: Annotated[
        str,
        typer.Option(
            help="Only by this administrator; 'node:ID' is a data plane, 'system' the service.",
            show_default=False,
        ),
    ] = "",
    method: Annotated[
        str,
        typer.Option("--rpc", help="Only calls of this method: ApproveDevice.", show_default=False),
    ] = "",
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many; all without it.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """List changes, newest first."""
    with admin_channel() as channel:
        request = pb.ListAuditEntriesRequest(
            resource=resource,
            actor=actor,
            rpc=method,
            since=timestamp_of(since),
            until=timestamp_of(until),
        )
        found = all_pages(
            rpc.AuditServiceStub(channel).ListAuditEntries,
            request,
            lambda page: page.entries,
            page_size=min(limit or RESOURCES_PER_PAGE, RESOURCES_PER_PAGE),
        )
        shown = _row if output is Format.TABLE else _record
        print_many(map(shown, islice(found, limit)), output, _COLUMNS)


def _record(entry: "pb.AuditEntry") -> Record:
    changes: list[Plain] = [
        {
            "kind": change.kind,
            "id": change.id,
            "before": in_words(object_of(change.before)) if change.HasField("before") else None,
            "after": in_words(object_of(change.after)) if change.HasField("after") else None,
        }
        for change in entry.changes
    ]
    return {**record_of(entry), "changes": changes}


def _row(entry: "pb.AuditEntry") -> Record:
    return {**record_of(entry), "changes": _changes_text(entry.changes)}


def _changes_text(changes: "Sequence[pb.AuditedChange]") -> str:
    """Return what changed, shortly; which resource it was is said only where there are several."""
    if len(changes) == 1:
        return _change_text(changes[0])
    shown = [
        f"{change.kind} {change.id}: {_change_text(change)}"
        for change in changes[:_MOST_SHOWN_CHANGES]
    ]
    if len(changes) > _MOST_SHOWN_CHANGES:
        shown.append(f"and {len(changes) - _MOST_SHOWN_CHANGES} more")
    return "; ".join(shown)


def _change_text(change: "pb.AuditedChange") -> str:
    """Return what happened to one resource: `status: pending_approval → approved`."""
    if not change.HasField("before"):
        return "created"
    if not change.HasField("after"):
        return "deleted"
    before, after = in_words(object_of(change.before)), in_words(object_of(change.after))
    return ", ".join(
        f"{name}: {short_text(before.get(name))} → {short_text(after.get(name))}"
        for name in {**before, **after}
    )
