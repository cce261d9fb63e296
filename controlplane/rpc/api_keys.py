"""API keys of users: their text is shown once and kept nowhere."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from tollkeeper.admin.v1 import api_key_service_pb2 as pb
from tollkeeper.admin.v1 import api_key_service_pb2_grpc, changes_pb2

from controlplane.domain.errors import InvalidError
from controlplane.domain.keys import SECRET_BYTES, display_of, mint_api_key, sha256_of
from controlplane.domain.names import new_id, organization_of, parent_of
from controlplane.rpc.actors import current_actor
from controlplane.rpc.changing import AdminServicer, changing, resource_of
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.propagation import (
    receipt_to_proto,
    revocation_wait_ms,
    without_waiting,
)
from controlplane.rpc.redaction import audited
from controlplane.rpc.resources import check_etag, from_timestamp, stamps_of, to_timestamp
from controlplane.rpc.revocations import REVOCABLE, keep_revocation
from controlplane.rpc.tiers import check_tier
from controlplane.store.repositories import Repositories
from controlplane.store.tables import ApiKey, Router
from controlplane.store.transactions import Transaction

_CHANGEABLE: Final = frozenset({"router", "allowed_models", "expires_at", "tier"})


def api_key_to_proto(row: ApiKey, router: Router) -> pb.ApiKey:
    """Return a row as the admin API shows it."""
    return pb.ApiKey(
        name=row.name,
        router=router.name,
        allowed_models=row.allowed_models,
        expires_at=to_timestamp(row.expires_at) if row.expires_at else None,
        revoked=row.revoked,
        display=row.display,
        test=row.test,
        tier=row.tier,
        **stamps_of(row),
    )


class ApiKeyServicer(AdminServicer, api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """Serves ApiKeyService."""

    @changing(pb.CreateApiKeyResponse)
    async def CreateApiKey(
        self, tx: Transaction, request: pb.CreateApiKeyRequest
    ) -> Callable[[], pb.CreateApiKeyResponse]:
        """Add a key and show its text, this once; a dry run and a repetition show none."""
        given = request.api_key
        user = await tx.users.get(parent_of(given.name), field="api_key.name")
        router = await self._router(tx, given)
        await check_tier(tx, given.tier, field="api_key.tier")
        key_id = new_id(self.backend.random_below)
        text = mint_api_key(key_id, self.backend.random_bytes(SECRET_BYTES), test=given.test)
        row = ApiKey(
            id=key_id,
            name=given.name,
            user_id=user.id,
            router_id=router.id,
            sha256=sha256_of(text),
            display=display_of(text),
            test=given.test,
            allowed_models=list(given.allowed_models),
            expires_at=self._expiry(given),
            tier=given.tier,
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.api_keys.add(row)
        shown = "" if request.validate_only else text
        return lambda: pb.CreateApiKeyResponse(key=api_key_to_proto(row, router), api_key=shown)

    async def GetApiKey(self, request: pb.GetApiKeyRequest, _context: Context) -> pb.ApiKey:
        """Return a key, without its text."""
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            row = await repositories.api_keys.get(request.name)
            return api_key_to_proto(row, await repositories.routers.named(row.router_id))

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, _context: Context
    ) -> pb.ListApiKeysResponse:
        """Return a page of keys."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            await repositories.organization_id(request.organization)
            user = request.user and (await repositories.users.get(request.user, field="user")).id
            rows = await repositories.api_keys.page(
                after=page.after_name,
                size=page.fetch,
                below=request.organization,
                user_id=user or None,
            )
            routers = await repositories.routers.by_ids([row.router_id for row in rows])
        return pb.ListApiKeysResponse(
            api_keys=[api_key_to_proto(row, routers[row.router_id]) for row in page.cut(rows)],
            next_page_token=page.next_token(rows, "name"),
        )

    @changing(pb.ApiKey)
    async def UpdateApiKey(
        self, tx: Transaction, request: pb.UpdateApiKeyRequest
    ) -> Callable[[], pb.ApiKey]:
        """Change a key; a revoked one stays revoked."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        given = request.api_key
        row = await tx.api_keys.get_for_change(given.name)
        check_etag(row, given)
        if "router" in fields:
            row.router_id = (await self._router(tx, given)).id
        if "allowed_models" in fields:
            row.allowed_models = list(given.allowed_models)
        if "expires_at" in fields:
            row.expires_at = self._expiry(given)
        if "tier" in fields:
            await check_tier(tx, given.tier, field="api_key.tier")
            row.tier = given.tier
        router = await tx.routers.named(row.router_id)
        return lambda: api_key_to_proto(row, router)

    @changing(changes_pb2.DeleteResult)
    async def DeleteApiKey(
        self, tx: Transaction, request: pb.DeleteApiKeyRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a key; the data planes are told at once."""
        row = await tx.api_keys.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, _context: Context
    ) -> changes_pb2.RevocationReceipt:
        """Take a key out of service for good, and say which data planes obey.

        Repeating it changes nothing and gives a fresh receipt, with or without a `request_id`.
        """
        actor = current_actor().name
        async with self.backend.store.transaction(actor, "RevokeApiKey") as tx:
            tx.describe(resource_of(request), audited(without_waiting(request)))
            row = await tx.api_keys.get_for_change(request.name)
            row.revoked = True
            organization_id = await keep_revocation(
                tx, row, terminate_streams=request.terminate_streams
            )
        receipt = await self.backend.revoker.revoke(
            REVOCABLE[row.KIND],
            row.id,
            row.revision,
            organization_id=organization_id,
            terminate_streams=request.terminate_streams,
            wait_ms=revocation_wait_ms(request),
        )
        return receipt_to_proto(receipt)

    async def _router(self, tx: Transaction, given: pb.ApiKey) -> Router:
        if not given.router:
            raise InvalidError("a key needs a router", field="api_key.router")
        organization = await tx.organizations.get(organization_of(given.name))
        return await tx.routers.resolve(given.router, organization, field="api_key.router")

    def _expiry(self, given: pb.ApiKey) -> datetime | None:
        if not given.HasField("expires_at"):
            return None
        expires_at = from_timestamp(given.expires_at, field="api_key.expires_at")
        if expires_at <= self.backend.clock():
            raise InvalidError("this is in the past", field="api_key.expires_at")
        return expires_at
