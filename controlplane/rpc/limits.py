"""Limits of the service, of organizations, users, keys, devices, addresses, endpoint classes and models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import assert_never

from tollkeeper.admin.v1 import changes_pb2, limit_service_pb2_grpc
from tollkeeper.admin.v1 import limit_service_pb2 as pb
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.limits import check_fail_open, check_limits
from controlplane.domain.names import SubjectKind, SubjectName, parse_subject
from controlplane.domain.subject_limits import (
    SubjectLimitSet,
    check_resettable,
    check_temporary,
)
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import (
    check_etag,
    etag_of,
    limit_from_proto,
    limit_to_proto,
    temporary_from_proto,
    to_timestamp,
)
from controlplane.store.repositories import Repositories
from controlplane.store.subject_limits import limit_set_of, put_limit_set
from controlplane.store.tables import Organization, SubjectLimits
from controlplane.store.transactions import Transaction


def limits_message(
    subject: SubjectName, row: SubjectLimits | None, now: datetime
) -> pb.SubjectLimits:
    """Return what is set for a subject and has not expired; without a row, empty lists."""
    if row is None:
        return pb.SubjectLimits(subject=str(subject))
    held = limit_set_of(row).at(now)
    return pb.SubjectLimits(
        subject=row.name,
        limits=[
            limit_to_proto(replace(limit, reset_generation=held.generation_of(limit.identity)))
            for limit in held.limits
        ],
        temporary_limits=[
            limits_pb2.TemporaryLimit(
                limit=limit_to_proto(each.limit), until=to_timestamp(each.until)
            )
            for each in held.temporary
        ],
        resets=[
            limits_pb2.CounterReset(
                unit=limits_pb2.LimitUnit.ValueType(reset.unit),
                window=limits_pb2.LimitWindow.ValueType(reset.window),
                reset_generation=reset.reset_generation,
            )
            for reset in held.resets
        ],
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
    return await _changed(tx, subject, subject_id, lambda held: held.with_limits(limits))


async def _changed(
    tx: Transaction,
    subject: SubjectName,
    subject_id: str,
    change: Callable[[SubjectLimitSet], SubjectLimitSet],
) -> SubjectLimits | None:
    """Change what a subject has, without what has expired; return its row, None when there is nothing to keep."""
    row = await tx.limits.find_for_change(subject)
    after = change(limit_set_of(row).at(tx.now))
    if row is None:
        if after.is_empty:
            return None
        row = tx.limits.new_row(subject, subject_id, created_at=tx.now, updated_at=tx.now)
        tx.add(row)
    elif after.is_empty:
        await tx.delete(row)
        return None
    put_limit_set(row, after)
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
        case SubjectKind.IP | SubjectKind.ENDPOINT | SubjectKind.MODEL:
            # Everything of that form exists; its text is its id.
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
            row = await rows.limits.find(str(subject))
        return limits_message(subject, row, self.backend.clock())

    async def ListLimits(
        self, request: pb.ListLimitsRequest, _context: Context
    ) -> pb.ListLimitsResponse:
        """Return a page of the subjects that have limits."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).limits.page(after=page.after_name, size=page.fetch)
        now = self.backend.clock()
        shown = [
            limits_message(parse_subject(row.name, field="subject"), row, now)
            for row in page.cut(rows)
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
        await _check_policy(tx, subject, row)
        return lambda: limits_message(subject, row, tx.now)

    @changing(pb.SubjectLimits)
    async def SetTemporaryLimits(
        self, tx: Transaction, request: pb.SetTemporaryLimitsRequest
    ) -> Callable[[], pb.SubjectLimits]:
        """Set limits of a subject that expire."""
        subject = parse_subject(request.subject, field="subject")
        given = [
            temporary_from_proto(each, field=f"limits[{index}]")
            for index, each in enumerate(request.limits)
        ]
        check_temporary(given, now=tx.now, field="limits")
        await _hold(tx, subject)
        subject_id = await subject_id_of(tx, subject)
        row = await _changed(tx, subject, subject_id, lambda held: held.with_temporary(given))
        await _check_policy(tx, subject, row)
        return lambda: limits_message(subject, row, tx.now)

    @changing(pb.SubjectLimits)
    async def ResetCounters(
        self, tx: Transaction, request: pb.ResetCountersRequest
    ) -> Callable[[], pb.SubjectLimits]:
        """Let counters of a subject start anew."""
        subject = parse_subject(request.subject, field="subject")
        identities = [limit_from_proto(limit).identity for limit in request.limits]
        check_resettable(identities, field="limits")
        await _hold(tx, subject)
        subject_id = await subject_id_of(tx, subject)
        row = await _changed(tx, subject, subject_id, lambda held: held.with_reset(identities))
        return lambda: limits_message(subject, row, tx.now)

    @changing(changes_pb2.DeleteResult)
    async def DeleteLimits(
        self, tx: Transaction, request: pb.DeleteLimitsRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove limits of a subject; what is known of its resets stays."""
        subject = parse_subject(request.subject, field="subject")
        subject_id = await subject_id_of(tx, subject)
        row = await tx.limits.find_for_change(subject)
        if row is not None:
            check_etag(row, request)
        removed = [limit_from_proto(limit).identity for limit in request.limits]
        await _changed(
            tx,
            subject,
            subject_id,
            lambda held: held.without(removed, temporary_only=request.temporary_only),
        )
        return lambda: changes_pb2.DeleteResult(revision=tx.revision)


async def _hold(tx: Transaction, subject: SubjectName) -> None:
    """Keep others from changing what a subject's limits depend on, until this change is committed."""
    if subject.kind is SubjectKind.ORGANIZATION:
        # Its policy and its budgets are changed one after the other: each checks against the other.
        await tx.organizations.get_for_change(subject.name, field="subject")
    if subject.kind is SubjectKind.DEVICE:
        # One that waits for approval may be forgotten at any time, with its limits.
        await tx.devices.get_for_change(subject.name, field="subject")


async def _check_policy(tx: Transaction, subject: SubjectName, row: SubjectLimits | None) -> None:
    if subject.kind is SubjectKind.ORGANIZATION:
        organization = await tx.organizations.get(subject.name)
        limits = limit_set_of(row).at(tx.now).all_limits
        check_fail_open(fails_open=fails_open(organization), limits=limits)
