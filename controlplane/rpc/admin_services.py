"""The admin services that change and show the configuration, and what surrounds every call."""

from collections.abc import Callable
from datetime import datetime

from grpc import aio
from tollkeeper.admin.v1 import (
    administrator_service_pb2_grpc,
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    budget_service_pb2_grpc,
    configuration_service_pb2_grpc,
    credential_service_pb2_grpc,
    device_service_pb2_grpc,
    limit_service_pb2_grpc,
    organization_service_pb2_grpc,
    price_service_pb2_grpc,
    provider_service_pb2_grpc,
    router_service_pb2_grpc,
    tier_service_pb2_grpc,
    user_service_pb2_grpc,
)

from controlplane.rpc.administrators import AdministratorServicer
from controlplane.rpc.api_keys import ApiKeyServicer
from controlplane.rpc.audit import AuditServicer
from controlplane.rpc.authorization import PUBLIC_SERVICES, Authenticator, Authorization
from controlplane.rpc.budgets import BudgetServicer
from controlplane.rpc.changing import Backend
from controlplane.rpc.configuration import ConfigurationServicer
from controlplane.rpc.credentials import CredentialServicer
from controlplane.rpc.devices import DeviceServicer
from controlplane.rpc.errors import error_edge
from controlplane.rpc.interception import SurroundingInterceptor, deadline
from controlplane.rpc.limits import LimitServicer
from controlplane.rpc.node_admission import NodeAdmission, SaidByNodes
from controlplane.rpc.organizations import OrganizationServicer
from controlplane.rpc.prices import PriceServicer
from controlplane.rpc.providers import ProviderServicer
from controlplane.rpc.revocations import Revoker
from controlplane.rpc.routers import RouterServicer
from controlplane.rpc.tiers import TierServicer
from controlplane.rpc.users import UserServicer
from controlplane.rpc.validation import validation
from controlplane.secrets.sealing import Sealer
from controlplane.store.database import Store


def interceptors(
    store: Store,
    *,
    node_token: str | None,
    admission: NodeAdmission | None = None,
    public_services: frozenset[str] = PUBLIC_SERVICES,
) -> tuple[aio.ServerInterceptor, ...]:
    """Return what a server needs around every call, outermost first: errors, deadline, authorization, validation.

    Args:
        store: Where administrators are.
        node_token: What data planes share; None: no data plane calls here.
        admission: Refuses banned data planes.
        public_services: Need no caller.

    Raises:
        ValueError: The node token is so short that it could be guessed.
    """
    authenticator = Authenticator(store, node_token)
    return _around(Authorization(authenticator, public_services, admission=admission), admission)


def node_interceptors(admission: NodeAdmission) -> tuple[aio.ServerInterceptor, ...]:
    """Return the same for a server that only nodes with a certificate call."""
    gate = Authorization(admission, frozenset(), admission=admission, is_for_nodes_only=True)
    return _around(gate, admission)


def _around(
    authorization: Authorization, admission: NodeAdmission | None
) -> tuple[aio.ServerInterceptor, ...]:
    return (
        SurroundingInterceptor(error_edge),
        SurroundingInterceptor(deadline),
        SurroundingInterceptor(authorization.gate_of),
        SurroundingInterceptor(validation),
        *([SaidByNodes(admission)] if admission else ()),
    )


def add_admin_services(
    server: aio.Server,
    store: Store,
    sealer: Sealer,
    revoker: Revoker,
    clock: Callable[[], datetime],
) -> None:
    """Add the admin services of everything that the configuration is made of, of budgets and of the audit log.

    The server must have the `interceptors`: a servicer does not know its caller otherwise, and fails.
    """
    backend = Backend(store, sealer, revoker, clock)
    organization_service_pb2_grpc.add_OrganizationServiceServicer_to_server(
        OrganizationServicer(backend), server
    )
    user_service_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(backend), server)
    api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server(ApiKeyServicer(backend), server)
    device_service_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(backend), server)
    provider_service_pb2_grpc.add_ProviderServiceServicer_to_server(
        ProviderServicer(backend), server
    )
    credential_service_pb2_grpc.add_CredentialServiceServicer_to_server(
        CredentialServicer(backend), server
    )
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(RouterServicer(backend), server)
    limit_service_pb2_grpc.add_LimitServiceServicer_to_server(LimitServicer(backend), server)
    tier_service_pb2_grpc.add_TierServiceServicer_to_server(TierServicer(backend), server)
    budget_service_pb2_grpc.add_BudgetServiceServicer_to_server(BudgetServicer(backend), server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(backend), server)
    configuration_service_pb2_grpc.add_ConfigurationServiceServicer_to_server(
        ConfigurationServicer(backend), server
    )
    price_service_pb2_grpc.add_PriceServiceServicer_to_server(PriceServicer(backend), server)
    administrator_service_pb2_grpc.add_AdminServiceServicer_to_server(
        AdministratorServicer(backend), server
    )
