"""`tollkeeper config`: former revisions of the configuration, what differs, and the way back."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from controlplane.cli.connection import admin_channel
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, note, print_many, print_one
from controlplane.cli.paging import RESOURCES_PER_PAGE, all_pages
from controlplane.cli.plain import Record
from controlplane.cli.typer_apps import example, new_app
from controlplane.cli.waiting import waits

if TYPE_CHECKING:
    from tollkeeper.admin.v1 import configuration_service_pb2 as pb
    from tollkeeper.admin.v1 import configuration_service_pb2_grpc as rpc
else:
    pb = imported_on_use("tollkeeper.admin.v1.configuration_service_pb2")
    rpc = imported_on_use("tollkeeper.admin.v1.configuration_service_pb2_grpc")

app = new_app("The configuration: its former revisions, and the way back.")

_HISTORY: Final = ("revision", "at", "actor", "rpc", "resource", "changed_rows")
_DIFFERENCES: Final = ("kind", "name", "field", "before", "after")
# A table is for a glance; -o json has everything.
_MOST_SHOWN: Final = 200

Revision: TypeAlias = Annotated[int, typer.Argument(min=0, metavar="REV", show_default=False)]


@app.command(epilog=example("config history --limit 20", "config history -o json"))
def history(
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many; all without it.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """List the revisions that are kept, newest first, and who made them."""
    with admin_channel() as channel:
        found = all_pages(
            rpc.ConfigurationServiceStub(channel).ListRevisions,
            pb.ListRevisionsRequest(),
            lambda page: page.revisions,
            page_size=min(limit or RESOURCES_PER_PAGE, RESOURCES_PER_PAGE),
        )
        print_many(islice(found, limit), output, _HISTORY)


@app.command(epilog=example("config diff 41 42", "config diff 12 0 -o json"))
def diff(
    from_revision: Revision,
    to_revision: Annotated[
        int,
        typer.Argument(min=0, metavar="REV", help="0 is the newest.", show_default=False),
    ],
    output: Output = Format.TABLE,
) -> None:
    """Show what differs between two revisions. Secrets and hashes are not shown."""
    request = pb.DiffRevisionsRequest(from_revision=from_revision, to_revision=to_revision)
    with admin_channel() as channel:
        answer = rpc.ConfigurationServiceStub(channel).DiffRevisions(request)
    if output is Format.TABLE:
        _print_table(answer.differences, output)
    else:
        print_one(answer, output)


@app.command(epilog=example("config rollback 41 --dry-run", "config rollback 41 --wait 5s"))
@waits
def rollback(
    revision: Annotated[
        int,
        typer.Argument(min=1, metavar="REV", help="The revision to return to.", show_default=False),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Make the configuration what it was at a revision, as a new revision.

    Keys and devices that were revoked or deleted do not come back, secrets stay what they are.
    """
    request = pb.RollbackConfigurationRequest(revision=revision, validate_only=dry_run)
    with admin_channel() as channel:
        answer = rpc.ConfigurationServiceStub(channel).RollbackConfiguration(request)
    if output is Format.TABLE:
        _print_table(answer.changes, output)
    else:
        print_one(answer, output)
    for sentence in answer.skipped:
        note(f"Left as it is: {sentence}")
    note(_outcome(len(answer.changes), answer.revision, dry_run=dry_run))


def _outcome(changes: int, revision: int, *, dry_run: bool) -> str:
    things = "1 thing" if changes == 1 else f"{changes} things"
    if dry_run:
        return f"This would change {things}."
    return f"Changed {things}; this is revision {revision}." if changes else "Nothing differs."


def _print_table(differences: "Iterable[pb.RowDifference]", output: Format) -> None:
    rows = list(_rows(differences))
    print_many(rows[:_MOST_SHOWN], output, _DIFFERENCES)
    if len(rows) > _MOST_SHOWN:
        note(f"{len(rows) - _MOST_SHOWN} more; -o json shows all of them.")


def _rows(differences: "Iterable[pb.RowDifference]") -> Iterator[Record]:
    """Return a row for each field that changed, and one for what was made or deleted."""
    for each in differences:
        row: Record = {"kind": each.kind, "name": each.name or each.id}
        if each.is_created or each.is_deleted:
            yield {**row, "field": "created" if each.is_created else "deleted"}
            continue
        for field in each.fields:
            yield {**row, "field": field.field, "before": field.before, "after": field.after}
