"""A real admin server in this process, and a client of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # has none
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # has none
from grpc import aio
from tollkeeper.admin.v1 import administrator_service_pb2_grpc as administrators
from tollkeeper.admin.v1 import api_key_service_pb2_grpc as api_keys
from tollkeeper.admin.v1 import audit_service_pb2_grpc as audit
from tollkeeper.admin.v1 import budget_service_pb2_grpc as budgets
from tollkeeper.admin.v1 import configuration_service_pb2_grpc as configuration
from tollkeeper.admin.v1 import credential_service_pb2_grpc as credentials
from tollkeeper.admin.v1 import device_service_pb2_grpc as devices
from tollkeeper.admin.v1 import limit_service_pb2_grpc as limits
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import organization_service_pb2_grpc as organizations
from tollkeeper.admin.v1 import price_service_pb2_grpc as prices
from tollkeeper.admin.v1 import provider_service_pb2_grpc as providers
from tollkeeper.admin.v1 import router_service_pb2_grpc as routers
from tollkeeper.admin.v1 import tier_service_pb2_grpc as tiers
from tollkeeper.admin.v1 import user_service_pb2_grpc as users

from controlplane.domain.keys import mint_administrator_token
from controlplane.domain.revocations import (
    AppliedChange,
    AppliedRevocation,
    Propagation,
    Receipt,
)
from controlplane.rpc.admin_services import add_admin_services, interceptors
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.store.database import Store

OWNER_TOKEN: Final = mint_administrator_token(bytes(32))
NODE_TOKEN: Final = "node-token-of-the-tests-0123456789abcdef"
MASTER_KEY: Final = bytes(range(32))


@dataclass
class RecordingRevoker:
    """Stands for the data planes, which are far away: notes what it is told and answers from a script."""

    calls: list[tuple[int, str, int, bool, int]] = field(default_factory=list)
    organization_ids: list[str] = field(default_factory=list)
    waits: list[tuple[int, int]] = field(default_factory=list)

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        organization_id: str = "",
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        self.calls.append((kind, subject_id, revision, terminate_streams, wait_ms))
        self.organization_ids.append(organization_id)
        return Receipt(revision, (AppliedRevocation("node-1", 7, True),), ("node-2",))

    async def propagated(self, revision: int, *, wait_ms: int) -> Propagation:
        self.waits.append((revision, wait_ms))
        applied = AppliedChange("node-1", len(self.waits))
        return Propagation(revision, (applied,), ("node-2",))

    @property
    def subjects(self) -> list[str]:
        return [call[1] for call in self.calls]


@dataclass
class Refused:
    """A refusal as a program sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: list[str]
    referrers: list[str]
    retry_after_s: int = 0


def refusal_of(error: aio.AioRpcError) -> Refused:
    status = Status()
    trailers: Any = error.trailing_metadata() or ()
    status.ParseFromString(dict(trailers)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    bad, failed = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad, failed, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return Refused(
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        [violation.field for violation in bad.field_violations],
        [violation.subject for violation in failed.violations],
        retry.retry_delay.seconds,
    )


async def refused(call: Any) -> Refused:
    """Await a call that must be refused, and return how."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


def mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


class AdminApi:
    """The stubs of all admin services, on one channel, as one administrator."""

    def __init__(self, address: str, token: str = OWNER_TOKEN) -> None:
        self.address = address
        self.channel = aio.insecure_channel(address, interceptors=[_Bearer(token)])
        self.administrators = administrators.AdminServiceStub(self.channel)
        self.api_keys = api_keys.ApiKeyServiceStub(self.channel)
        self.audit = audit.AuditServiceStub(self.channel)
        self.budgets = budgets.BudgetServiceStub(self.channel)
        self.configuration = configuration.ConfigurationServiceStub(self.channel)
        self.credentials = credentials.CredentialServiceStub(self.channel)
        self.devices = devices.DeviceServiceStub(self.channel)
        self.limits = limits.LimitServiceStub(self.channel)
        self.organizations = organizations.OrganizationServiceStub(self.channel)
        self.prices = prices.PriceServiceStub(self.channel)
        self.providers = providers.ProviderServiceStub(self.channel)
        self.routers = routers.RouterServiceStub(self.channel)
        self.tiers = tiers.TierServiceStub(self.channel)
        self.users = users.UserServiceStub(self.channel)

    async def create_organization(self, name: str, **fields: Any) -> organization_pb.Organization:
        return await self.organizations.CreateOrganization(
            organization_pb.CreateOrganizationRequest(
                organization=organization_pb.Organization(name=name, **fields)
            )
        )


class _Bearer(aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        metadata = aio.Metadata(*(client_call_details.metadata or ()))
        if self._token:
            metadata.add("authorization", f"Bearer {self._token}")
        details = aio.ClientCallDetails(
            client_call_details.method,
            client_call_details.timeout or 20,
            metadata,
            client_call_details.credentials,
            client_call_details.wait_for_ready,
        )
        return await continuation(details, request)


@asynccontextmanager
async def listening(server: aio.Server) -> AsyncIterator[str]:
    """Run a server on a free port for the length of the block; gives its address."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def admin_server(store: Store, revoker: RecordingRevoker) -> aio.Server:
    """Return a server with all admin services."""
    server = aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    add_admin_services(
        server, store, Sealer([MasterKey(MASTER_KEY)]), revoker, lambda: store.clock()
    )
    return server
