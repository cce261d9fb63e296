"""Organizations."""

import functools
import zoneinfo
from collections.abc import Callable
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, organization_service_pb2_grpc
from tollkeeper.admin.v1 import organization_service_pb2 as pb

from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import check_fail_open
from controlplane.domain.names import SubjectKind, SubjectName, new_id
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.limits import fails_open, set_limits
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import check_etag, stamps_of
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Organization
from controlplane.store.transactions import Transaction

# Columns have the names of the fields.
_CHANGEABLE: Final = frozenset(
    {"time_zone", "on_limits_unavailable", "paused", "default_output_cap_tokens"}
)


def organization_to_proto(row: Organization) -> pb.Organization:
    """Return a row as the admin API shows it."""
    return pb.Organization(
        name=row.name,
        time_zone=row.time_zone,
        on_limits_unavailable=row.on_limits_unavailable,  # type: ignore[arg-type]  # a number of the enum
        paused=row.paused,
        default_output_cap_tokens=row.default_output_cap_tokens,
        **stamps_of(row),
    )


@functools.cache
def _time_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _apply(row: Organization, given: pb.Organization, fields: frozenset[str]) -> None:
    if "time_zone" in fields and given.time_zone and given.time_zone not in _time_zones():
        raise InvalidError("not an IANA time zone", field="organization.time_zone")
    for field in fields:
        setattr(row, field, getattr(given, field))


class OrganizationServicer(
    AdminServicer, organization_service_pb2_grpc.OrganizationServiceServicer
):
    """Serves OrganizationService."""

    @changing(pb.Organization)
    async def CreateOrganization(
        self, tx: Transaction, request: pb.CreateOrganizationRequest
    ) -> Callable[[], pb.Organization]:
        """Add an organization, with its limits."""
        given = request.organization
        row = Organization(
            id=new_id(self.backend.random_below),
            name=given.name,
            created_at=tx.now,
            updated_at=tx.now,
        )
        _apply(row, given, _CHANGEABLE)
        await tx.organizations.add(row)
        subject = SubjectName(SubjectKind.ORGANIZATION, row.name)
        await set_limits(tx, subject, row.id, request.limits, field="limits")
        await _check_policy(tx, row)
        return lambda: organization_to_proto(row)

    async def GetOrganization(
        self, request: pb.GetOrganizationRequest, _context: Context
    ) -> pb.Organization:
        """Return an organization."""
        async with self.backend.store.reading() as session:
            return organization_to_proto(
                await Repositories(session).organizations.get(request.name)
            )

    async def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, _context: Context
    ) -> pb.ListOrganizationsResponse:
        """Return a page of organizations."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).organizations.page(
                after=page.after_name, size=page.fetch
            )
        return pb.ListOrganizationsResponse(
            organizations=map(organization_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, "name"),
        )

    @changing(pb.Organization)
    async def UpdateOrganization(
        self, tx: Transaction, request: pb.UpdateOrganizationRequest
    ) -> Callable[[], pb.Organization]:
        """Change an organization; a pause is published at once, without waiting for company."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        row = await tx.organizations.get_for_change(request.organization.name)
        check_etag(row, request.organization)
        _apply(row, request.organization, frozenset(fields))
        await _check_policy(tx, row)
        return lambda: organization_to_proto(row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteOrganization(
        self, tx: Transaction, request: pb.DeleteOrganizationRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove an organization, by force with all it owns."""
        row = await tx.organizations.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)


async def _check_policy(tx: Transaction, row: Organization) -> None:
    held = await tx.limits.of(SubjectName(SubjectKind.ORGANIZATION, row.name))
    check_fail_open(fails_open=fails_open(row), limits=held.at(tx.now).all_limits)
