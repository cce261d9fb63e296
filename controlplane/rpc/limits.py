"""Limits of the service, of organizations, users, keys, devices and addresses."""

from collections.abc import Callable, Sequence
from typing import assert_never

from tollkeeper.admin.v1 import changes_pb2, limit_service_pb2_grpc
from tollkeeper.admin.v1 import limit_service_pb2 as pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.limits import Limit, check_fail_open, check_limits, merged, without
from controlplane.domain.names import SubjectKind, SubjectName, parse_subject
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import (
    check_etag,
    etag_of,
    limit_from_proto,
    limits_to_proto,
    to_timestamp,
)
from controlplane.store.repositories import Repositories
from controlplane.store.subject_limits import limits_from_json, limits_to_json
from controlplane.store.tables import Organization, SubjectLimits
from controlplane.store.transactions import Transaction


def limits_message(subject: SubjectName, row: SubjectLimits | None) -> pb.SubjectLimits:
    """Return a subject's limits; without a row, an empty list."""
    if row is None:
        return pb.SubjectLimits(subject=str(subject))
    return pb.SubjectLimits(
        subject=row.name,
        limits=limits_to_proto(row.limits),
        revision=row.revision,
        etag=etag_of(row),
        updated_at=to_timestamp(row.updated_at),
    )


def fails_open(organization: Organization) -> bool:
    """Say whether an organization admits requests while counters cannot be read."""
    return organization.on_limits_unavailable == resources_pb2.LIMITS_UNAVAILABLE_POLICY_OPEN


async def set_limits(
    tx: Transaction,
    subject: SubjectName,
    subject_id: str,
    given: Sequence[limits_pb2.Limit],
    *,
    field: str,
) -> SubjectLimits | None:
    """Set `given` beside a subject's other limits; return its row, None when it has no limits.

    Raises:
        InvalidError: A limit is not valid; names it below `field`.
    """
    limits = [limit_from_proto(limit) for limit in given]
    check_limits(limits, field=field)
    row = await tx.limits.find_for_change(subject)
    if row is None and limits:
        row = tx.limits.new_row(subject, subject_id, created_at=tx.now, updated_at=tx.now)
        tx.add(row)
    if row is not None:
        row.limits = limits_to_json(merged(limits_from_json(row.limits), limits))
    return row


async def subject_id_of(rows: Repositories, subject: SubjectName) -> str:
    """Return the id of whom a limit counts; empty for the service-wide subject.

    Raises:
        NotFoundError: There is no such subject.
    """
    match subject.kind:
        case SubjectKind.GLOBAL:
            return ""
        case SubjectKind.ORGANIZATION:
            return (await rows.organizations.get(subject.name, field="subject")).id
        case SubjectKind.USER:
            return (await rows.users.get(subject.name, field="subject")).id
        case SubjectKind.KEY:
            return (await rows.api_keys.get(subject.name, field="subject")).id
        case SubjectKind.DEVICE:
            return (await rows.devices.get(subject.name, field="subject")).id
        case SubjectKind.IP:
            # Every address exists; its text is its id.
            return subject.name
        case _:
            assert_never(subject.kind)


class LimitServicer(AdminServicer, limit_service_pb2_grpc.LimitServiceServicer):
    """Serves LimitService."""

    async def GetLimits(self, request: pb.GetLimitsRequest, _context: Context) -> pb.SubjectLimits:
        """Return a subject's limits."""
        subject = parse_subject(request.subject, field="subject")
        async with self.backend.store.reading() as session:
            rows = Repositories(session)
            await subject_id_of(rows, subject)
            return limits_message(subject, await rows.limits.find(str(subject)))

    async def ListLimits(
        self, request: pb.ListLimitsRequest, _context: Context
    ) -> pb.ListLimitsResponse:
        """Return a page of the subjects that have limits."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).limits.page(after=page.after_name, size=page.fetch)
        shown = [
            limits_message(parse_subject(row.name, field="subject"), row) for row in page.cut(rows)
        ]
        return pb.ListLimitsResponse(limits=shown, next_page_token=page.next_token(rows, "name"))

    @changing(pb.SubjectLimits)
    async def SetLimits(
        self, tx: Transaction, request: pb.SetLimitsRequest
    ) -> Callable[[], pb.SubjectLimits]:
        """Set limits of a subject."""
        subject = parse_subject(request.limits.subject, field="limits.subject")
        await _hold(tx, subject)
        subject_id = await subject_id_of(tx, subject)
        before = await tx.limits.find_for_change(subject)
        if before is not None:
            check_etag(before, request.limits)
        row = await set_limits(
            tx, subject, subject_id, request.limits.limits, field="limits.limits"
        )
        await _check_policy(tx, subject, limits_from_json(row.limits) if row else ())
        return lambda: limits_message(subject, row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteLimits(
        self, tx: Transaction, request: pb.DeleteLimitsRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove limits of a subject."""
        subject = parse_subject(request.subject, field="subject")
        await subject_id_of(tx, subject)
        row = await tx.limits.find_for_change(subject)
        if row is not None:
            check_etag(row, request)
            removed = [limit_from_proto(limit).identity for limit in request.limits]
            left = without(limits_from_json(row.limits), removed) if removed else ()
            if left:
                row.limits = limits_to_json(left)
            else:
                await tx.delete(row)
        return lambda: changes_pb2.DeleteResult(revision=tx.revision)


async def _hold(tx: Transaction, subject: SubjectName) -> None:
    """Keep others from changing what a subject's limits depend on, until this change is committed."""
    if subject.kind is SubjectKind.ORGANIZATION:
        # Its policy and its budgets are changed one after the other: each checks against the other.
        await tx.organizations.get_for_change(subject.name, field="subject")
    if subject.kind is SubjectKind.DEVICE:
        # One that waits for approval may be forgotten at any time, with its limits.
        await tx.devices.get_for_change(subject.name, field="subject")


async def _check_policy(tx: Transaction, subject: SubjectName, limits: Sequence[Limit]) -> None:
    if subject.kind is SubjectKind.ORGANIZATION:
        organization = await tx.organizations.get(subject.name)
        check_fail_open(fails_open=fails_open(organization), limits=limits)
