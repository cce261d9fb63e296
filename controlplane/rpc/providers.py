"""Providers: where answers come from."""

from collections.abc import Callable, Sequence
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, provider_service_pb2_grpc
from tollkeeper.admin.v1 import provider_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.errors import InvalidError
from controlplane.domain.names import new_id, organization_of
from controlplane.domain.routing import Dialect, Endpoint, endpoints_of
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import check_etag, stamps_of
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Provider
from controlplane.store.transactions import Transaction

_CHANGEABLE: Final = frozenset({"kind", "endpoints", "quirks"})


def provider_to_proto(row: Provider) -> pb.Provider:
    """Return a row as the admin API shows it."""
    return pb.Provider(
        name=row.name,
        kind=row.provider_kind,
        endpoints=[resources_pb2.Endpoint(**item) for item in row.endpoints],
        quirks=row.quirks,
        **stamps_of(row),
    )


def _apply(row: Provider, given: pb.Provider, fields: frozenset[str]) -> None:
    if "kind" in fields:
        row.provider_kind = given.kind
    if "quirks" in fields:
        row.quirks = list(given.quirks)
    if "endpoints" in fields:
        endpoints = endpoints_of(
            row.provider_kind, _endpoints(given.endpoints), field="provider.endpoints"
        )
        row.endpoints = [
            {"dialect": int(endpoint.dialect), "base_url": endpoint.base_url}
            for endpoint in endpoints
        ]


def _endpoints(given: Sequence[resources_pb2.Endpoint]) -> list[Endpoint]:
    known = {int(dialect) for dialect in Dialect}
    for index, endpoint in enumerate(given):
        if endpoint.dialect not in known:
            raise InvalidError(
                "say which dialect is spoken there",
                field=f"provider.endpoints[{index}].dialect",
            )
    return [Endpoint(Dialect(endpoint.dialect), endpoint.base_url) for endpoint in given]


class ProviderServicer(AdminServicer, provider_service_pb2_grpc.ProviderServiceServicer):
    """Serves ProviderService."""

    @changing(pb.Provider)
    async def CreateProvider(
        self, tx: Transaction, request: pb.CreateProviderRequest
    ) -> Callable[[], pb.Provider]:
        """Add a provider; without endpoints it gets the public ones of its kind."""
        given = request.provider
        row = Provider(
            id=new_id(self.backend.random_below),
            name=given.name,
            organization_id=await tx.organization_id(
                organization_of(given.name), field="provider.name"
            ),
            provider_kind=given.kind,
            created_at=tx.now,
            updated_at=tx.now,
        )
        _apply(row, given, _CHANGEABLE)
        await tx.providers.add(row)
        return lambda: provider_to_proto(row)

    async def GetProvider(self, request: pb.GetProviderRequest, _context: Context) -> pb.Provider:
        """Return a provider."""
        async with self.backend.store.reading() as session:
            return provider_to_proto(await Repositories(session).providers.get(request.name))

    async def ListProviders(
        self, request: pb.ListProvidersRequest, _context: Context
    ) -> pb.ListProvidersResponse:
        """Return a page of providers."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            owner = await repositories.organization_id(request.organization)
            rows = await repositories.providers.page(
                after=page.after_name, size=page.fetch, organization_id=owner
            )
        return pb.ListProvidersResponse(
            providers=map(provider_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, "name"),
        )

    @changing(pb.Provider)
    async def UpdateProvider(
        self, tx: Transaction, request: pb.UpdateProviderRequest
    ) -> Callable[[], pb.Provider]:
        """Change a provider."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        row = await tx.providers.get_for_change(request.provider.name)
        check_etag(row, request.provider)
        _apply(row, request.provider, frozenset(fields))
        return lambda: provider_to_proto(row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteProvider(
        self, tx: Transaction, request: pb.DeleteProviderRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a provider, by force with its credentials, prices and the rules that name it."""
        row = await tx.providers.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)
