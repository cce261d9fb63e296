"""The audit log: who changed what, newest first."""

from typing import Any

from google.protobuf.struct_pb2 import Struct
from tollkeeper.admin.v1 import audit_service_pb2 as pb
from tollkeeper.admin.v1 import audit_service_pb2_grpc

from controlplane.domain.errors import InvalidError
from controlplane.rpc.changing import AdminServicer
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import Page, page_of, row_number_of
from controlplane.rpc.resources import from_timestamp, to_timestamp
from controlplane.store.audit import AuditFilter, list_entries
from controlplane.store.tables import AuditEntry


def entry_to_proto(row: AuditEntry) -> pb.AuditEntry:
    """Return a row as the admin API shows it."""
    return pb.AuditEntry(
        id=row.id or 0,
        at=to_timestamp(row.at),
        actor=row.actor,
        rpc=row.rpc,
        resource=row.resource,
        request=_struct(row.request),
        revision=row.revision,
        changes=[
            pb.AuditedChange(
                kind=change["kind"],
                id=change["id"],
                before=_struct(change["before"]),
                after=_struct(change["after"]),
            )
            for change in row.changes or ()
        ],
    )


class AuditServicer(AdminServicer, audit_service_pb2_grpc.AuditServiceServicer):
    """Serves AuditService."""

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, _context: Context
    ) -> pb.ListAuditEntriesResponse:
        """Return a page of entries; those that are written meanwhile shift nothing."""
        page = page_of(request)
        chosen, below_id = _filter_of(request), _below_id(page)
        async with self.backend.store.reading() as session:
            rows = await list_entries(session, chosen, limit=page.fetch, below_id=below_id)
        return pb.ListAuditEntriesResponse(
            entries=map(entry_to_proto, page.cut(rows)), next_page_token=page.next_token(rows, "id")
        )


def _filter_of(request: pb.ListAuditEntriesRequest) -> AuditFilter:
    for field in ("resource", "actor", "rpc"):
        if "\0" in getattr(request, field):
            raise InvalidError("no entry holds a NUL character", field=field)
    return AuditFilter(
        resource=request.resource,
        actor=request.actor,
        rpc=request.rpc,
        since=from_timestamp(request.since, field="since") if request.HasField("since") else None,
        until=from_timestamp(request.until, field="until") if request.HasField("until") else None,
    )


def _below_id(page: Page) -> int | None:
    if not page.after:
        return None
    (text,) = page.after
    return row_number_of(text)


def _struct(values: dict[str, Any] | None) -> Struct | None:  # Any: JSON
    if values is None:
        return None
    struct = Struct()
    struct.update(values)
    return struct
