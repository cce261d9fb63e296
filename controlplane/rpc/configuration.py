"""The configuration as a whole: its former revisions, and the way back."""

import json
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.exc import IntegrityError
from tollkeeper.admin.v1 import configuration_service_pb2 as pb
from tollkeeper.admin.v1 import configuration_service_pb2_grpc

from controlplane.domain.errors import PreconditionError
from controlplane.domain.kinds import Kind
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import REVOCABLE, revoke_after_commit
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import page_of, row_number_of
from controlplane.rpc.resources import to_timestamp
from controlplane.rpc.revocations import keep_revocation
from controlplane.store.history import Difference, History, RevisionEntry
from controlplane.store.rollback import roll_back
from controlplane.store.tables import ConfigurationRow
from controlplane.store.transactions import Transaction

MAX_DIFFERENCES: Final = 10_000

MAX_TOLD_AT_ONCE: Final = 100
"""Of more who can no longer call, the data planes are told as of what other control planes revoke: from what is kept with
the change, which is read at once. One by one they would fill the queues of all streams."""

# Of these it is only said that they differ.
_HIDDEN: Final = frozenset({"sha256", "token_sha256", "fingerprint", "sealed_secret", "display"})
_NOISE: Final = frozenset({"id", "revision", "created_at", "updated_at"})
_CHANGED: Final = '"(not shown)"'


class ConfigurationServicer(
    AdminServicer, configuration_service_pb2_grpc.ConfigurationServiceServicer
):
    """Serves ConfigurationService."""

    async def ListRevisions(
        self, request: pb.ListRevisionsRequest, _context: Context
    ) -> pb.ListRevisionsResponse:
        """Return a page of revisions, newest first."""
        page = page_of(request)
        below = row_number_of(page.after[0]) if page.after else None
        async with self.backend.store.reading() as session:
            history = History(session)
            oldest, _ = await history.bounds()
            rows = await history.page(below=below, limit=page.fetch)
        return pb.ListRevisionsResponse(
            revisions=map(_revision_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, "revision"),
            oldest_kept=oldest,
        )

    async def DiffRevisions(
        self, request: pb.DiffRevisionsRequest, _context: Context
    ) -> pb.DiffRevisionsResponse:
        """Return what differs between two revisions."""
        async with self.backend.store.reading() as session:
            history = History(session)
            to_revision = request.to_revision or (await history.bounds())[1]
            await history.check(request.from_revision)
            await history.check(to_revision)
            found = await history.differences(request.from_revision, to_revision)
        return pb.DiffRevisionsResponse(
            differences=map(difference_to_proto, found[:MAX_DIFFERENCES]),
            count=len(found),
            to_revision=to_revision,
        )

    @changing(pb.RollbackConfigurationResponse)
    async def RollbackConfiguration(
        self, tx: Transaction, request: pb.RollbackConfigurationRequest
    ) -> Callable[[], pb.RollbackConfigurationResponse]:
        """Return to a revision, as a new one; who can no longer call is revoked."""
        tx.describe(f"revision {request.revision}", {"revision": request.revision})
        try:
            done = await roll_back(tx, request.revision)
        except IntegrityError as error:
            raise PreconditionError(
                f"what revision {request.revision} held does not fit with what is kept",
                field="revision",
            ) from error
        await tx.devices.forget_sightings(
            [row.id for row in done.deleted if row.KIND is Kind.DEVICE]
        )
        await self._revoke(tx, [row for row in done.deleted if row.KIND in REVOCABLE])
        changes = [difference_to_proto(each) for each in done.changes[:MAX_DIFFERENCES]]
        skipped = [f"{kind} {row_id}: {why}" for (kind, row_id), why in done.skipped]
        return lambda: pb.RollbackConfigurationResponse(
            revision=tx.revision, changes=changes, skipped=skipped
        )

    async def _revoke(self, tx: Transaction, gone: list[ConfigurationRow]) -> None:
        for row in gone:
            if len(gone) > MAX_TOLD_AT_ONCE:
                await keep_revocation(tx, row)
            else:
                await revoke_after_commit(tx, self.backend.revoker, row)


def _revision_to_proto(entry: RevisionEntry) -> pb.Revision:
    return pb.Revision(
        revision=entry.revision,
        at=to_timestamp(entry.at),
        actor=entry.actor,
        rpc=entry.rpc,
        resource=entry.resource,
        changed_rows=entry.changed_rows,
    )


def difference_to_proto(difference: Difference) -> pb.RowDifference:
    """Return a difference as the admin API shows it."""
    kind, row_id = difference.key
    before, after = difference.before or {}, difference.after or {}
    names = [name for name in {**before, **after} if name not in _NOISE]
    return pb.RowDifference(
        kind=kind,
        id=row_id,
        name=_name_of(after or before),
        fields=[
            _field(name, before, after) for name in names if before.get(name) != after.get(name)
        ],
        is_created=difference.before is None,
        is_deleted=difference.after is None,
    )


def _field(name: str, before: dict[str, Any], after: dict[str, Any]) -> pb.FieldDifference:
    if name in _HIDDEN:
        return pb.FieldDifference(field=name, before=_CHANGED, after=_CHANGED)
    return pb.FieldDifference(
        field=name, before=_text(before.get(name)), after=_text(after.get(name))
    )


def _text(value: Any) -> str:  # Any: JSON
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _name_of(columns: dict[str, Any]) -> str:
    if "model" in columns:
        return f"{columns['provider']} {columns['model']}"
    return str(columns.get("name", ""))
