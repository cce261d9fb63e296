"""Tiers: sets of limits that users, devices and keys have by name."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from tollkeeper.admin.v1 import changes_pb2, tier_service_pb2_grpc
from tollkeeper.admin.v1 import tier_service_pb2 as pb

from controlplane.domain.errors import StillReferencedError
from controlplane.domain.tiers import LAYERS, check_deletable, check_layers, check_name
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import (
    check_etag,
    etag_of,
    limit_from_proto,
    limits_to_proto,
    to_timestamp,
)
from controlplane.store.repositories import Repositories
from controlplane.store.subject_limits import limits_to_json
from controlplane.store.tables import Tier
from controlplane.store.tiers import holders_of
from controlplane.store.transactions import Transaction

# Columns have the names of the fields.
_CHANGEABLE: Final = frozenset(LAYERS)


def tier_to_proto(row: Tier) -> pb.Tier:
    """Return a row as the admin API shows it."""
    return pb.Tier(
        name=row.name,
        device_limits=limits_to_proto(row.device_limits),
        ip_limits=limits_to_proto(row.ip_limits),
        user_limits=limits_to_proto(row.user_limits),
        credential_limits=limits_to_proto(row.credential_limits),
        revision=row.revision,
        etag=etag_of(row),
        created_at=to_timestamp(row.created_at),
        updated_at=to_timestamp(row.updated_at),
    )


async def check_tier(tx: Transaction, name: str, *, field: str) -> None:
    """Check that somebody may have a tier: it is there, and stays until this transaction ends; empty means none.

    Raises:
        NotFoundError: There is no tier of that name; names `field` of the request.
    """
    if name:
        await tx.tiers.get_for_change(name, field=field)


class TierServicer(AdminServicer, tier_service_pb2_grpc.TierServiceServicer):
    """Serves TierService."""

    @changing(pb.Tier)
    async def CreateTier(
        self, tx: Transaction, request: pb.CreateTierRequest
    ) -> Callable[[], pb.Tier]:
        """Add a tier; nobody has it yet."""
        given = request.tier
        check_name(given.name)
        row = Tier(
            id=given.name,
            name=given.name,
            **_layers_of(given, LAYERS),
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.tiers.add(row)
        return lambda: tier_to_proto(row)

    async def GetTier(self, request: pb.GetTierRequest, _context: Context) -> pb.Tier:
        """Return a tier."""
        async with self.backend.store.reading() as session:
            return tier_to_proto(await Repositories(session).tiers.get(request.name))

    async def ListTiers(
        self, request: pb.ListTiersRequest, _context: Context
    ) -> pb.ListTiersResponse:
        """Return a page of tiers."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).tiers.page(after=page.after_name, size=page.fetch)
        return pb.ListTiersResponse(
            tiers=map(tier_to_proto, page.cut(rows)), next_page_token=page.next_token(rows, "name")
        )

    @changing(pb.Tier)
    async def UpdateTier(
        self, tx: Transaction, request: pb.UpdateTierRequest
    ) -> Callable[[], pb.Tier]:
        """Change a tier, for everybody who has it."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        row = await tx.tiers.get_for_change(request.tier.name)
        check_etag(row, request.tier)
        for field, limits in _layers_of(request.tier, fields).items():
            setattr(row, field, limits)
        return lambda: tier_to_proto(row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteTier(
        self, tx: Transaction, request: pb.DeleteTierRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a tier that nobody has."""
        row = await tx.tiers.get_for_change(request.name)
        check_etag(row, request)
        check_deletable(row.name)
        holders = await holders_of(tx.session, row.name)
        if holders:
            raise StillReferencedError(f"tier {row.name}", holders)
        await tx.delete(row)
        return lambda: changes_pb2.DeleteResult(revision=tx.revision)


def _layers_of(given: pb.Tier, fields: Iterable[str]) -> dict[str, Any]:  # Any: JSON
    """Return the lists of a request by field, as a row holds them.

    Raises:
        InvalidError: A limit is not valid; names it.
    """
    layers = {
        field: [limit_from_proto(limit) for limit in getattr(given, field)] for field in fields
    }
    check_layers(layers, field="tier")
    return {field: limits_to_json(limits) for field, limits in layers.items()}
