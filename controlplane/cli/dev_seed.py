"""What the first start of `tollkeeper dev` creates, through the admin API like any other administrator.

Each step creates what is missing and leaves alone what is there, so that a start that was interrupted is finished by
the next one.
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from tollkeeper.admin.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    organization_service_pb2,
    organization_service_pb2_grpc,
    price_service_pb2,
    price_service_pb2_grpc,
    provider_service_pb2,
    provider_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from tollkeeper.common.v1 import limits_pb2, rates_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.cli.dev_administrator import Administrator
from controlplane.cli.dev_providers import RealProvider
from controlplane.cli.dev_registration import Registration, endpoints_of
from controlplane.cli.endpoints import DialectName
from controlplane.cli.processes import StartError

ORGANIZATION: Final = "demo"
USER: Final = "demo/dev"
API_KEY: Final = "demo/dev/default"
PROVIDER: Final = "mock"
ROUTER: Final = "default"
PRICED_MODELS: Final = "mock-*"
INPUT_NANOUSD_PER_MILLION: Final = 1_000_000_000
OUTPUT_NANOUSD_PER_MILLION: Final = 2_000_000_000
# Behind everything else: it takes every model that nobody took before.
MOCK_PRIORITY: Final = 100

# The control plane is on this machine; a proxy of the environment has no business in between.
_CHANNEL_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)


class Seeder:
    """The administrator that `dev` is while it starts."""

    def __init__(self, channel: grpc.aio.Channel, admin_token: str) -> None:
        self._channel = channel
        self._administrator = Administrator(channel, admin_token)

    async def seed(self, mock_url: str, api_key: str | None) -> str:
        """Create what is missing and return the text of the key.

        Args:
            mock_url: Where the mock provider is.
            api_key: The key's text, if an earlier start got as far as that.
        """
        await self._create_organization()
        await self._create_user()
        await self._create_provider(mock_url)
        await self._create_router()
        await self._create_price()
        return api_key or await self.mint_key()

    async def mint_key(self) -> str:
        """Create the key and return its text; a key whose text was lost is replaced."""
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(self._channel)
        request = api_key_service_pb2.CreateApiKeyRequest(
            api_key=api_key_service_pb2.ApiKey(name=API_KEY, router=ROUTER)
        )
        created = await self._administrator.create(stub.CreateApiKey, request)
        if created is None:
            await self._administrator.ask(
                stub.DeleteApiKey, api_key_service_pb2.DeleteApiKeyRequest(name=API_KEY, force=True)
            )
            created = await self._administrator.ask(stub.CreateApiKey, request)
        await self._lift_burst_limit()
        return created.api_key

    async def register(
        self, provider: RealProvider, former_endpoints: Collection[Mapping[DialectName, str]]
    ) -> str | None:
        """Register a real provider; see `Registration.register`."""
        registration = Registration(self._administrator, ROUTER, PROVIDER)
        return await registration.register(provider, former_endpoints)

    async def move_mock(self, former_url: str, mock_url: str) -> None:
        """Point the provider to where the mock is now, unless an administrator made it something else."""
        stub = provider_service_pb2_grpc.ProviderServiceStub(self._channel)
        try:
            provider = await self._administrator.ask(
                stub.GetProvider, provider_service_pb2.GetProviderRequest(name=PROVIDER)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return
        if list(provider.endpoints) == _endpoints_of(former_url):
            await self._update_endpoints(mock_url, provider.etag)

    async def _lift_burst_limit(self) -> None:
        """Let the new key burst: its tier stops at 100 requests a minute, and `dev` is for rehearsing load."""
        stub = limit_service_pb2_grpc.LimitServiceStub(self._channel)
        unlimited = limits_pb2.Limit(
            unit=limits_pb2.LIMIT_UNIT_REQUESTS,
            window=limits_pb2.LIMIT_WINDOW_MINUTE,
            unlimited=True,
        )
        limits = limit_service_pb2.SubjectLimits(subject=f"key:{API_KEY}", limits=[unlimited])
        await self._administrator.ask(
            stub.SetLimits, limit_service_pb2.SetLimitsRequest(limits=limits)
        )

    async def _create_organization(self) -> None:
        stub = organization_service_pb2_grpc.OrganizationServiceStub(self._channel)
        request = organization_service_pb2.CreateOrganizationRequest(
            organization=organization_service_pb2.Organization(name=ORGANIZATION)
        )
        await self._administrator.create(stub.CreateOrganization, request)

    async def _create_user(self) -> None:
        stub = user_service_pb2_grpc.UserServiceStub(self._channel)
        request = user_service_pb2.CreateUserRequest(
            user=user_service_pb2.User(name=USER, tier="paid")
        )
        await self._administrator.create(stub.CreateUser, request)

    async def _create_provider(self, mock_url: str) -> None:
        stub = provider_service_pb2_grpc.ProviderServiceStub(self._channel)
        request = provider_service_pb2.CreateProviderRequest(
            provider=provider_service_pb2.Provider(
                name=PROVIDER, kind="mock", endpoints=_endpoints_of(mock_url)
            )
        )
        if await self._administrator.create(stub.CreateProvider, request) is None:
            # An earlier start was interrupted; its mock was elsewhere.
            await self._update_endpoints(mock_url)

    async def _update_endpoints(self, mock_url: str, etag: str = "") -> None:
        stub = provider_service_pb2_grpc.ProviderServiceStub(self._channel)
        request = provider_service_pb2.UpdateProviderRequest(
            provider=provider_service_pb2.Provider(
                name=PROVIDER, kind="mock", endpoints=_endpoints_of(mock_url), etag=etag
            ),
            update_mask=FieldMask(paths=["endpoints"]),
        )
        await self._administrator.ask(stub.UpdateProvider, request)

    async def _create_router(self) -> None:
        stub = router_service_pb2_grpc.RouterServiceStub(self._channel)
        request = router_service_pb2.CreateRouterRequest(
            router=router_service_pb2.Router(name=ROUTER)
        )
        router = await self._administrator.create(stub.CreateRouter, request)
        if router is None:
            router = await self._administrator.ask(
                stub.GetRouter, router_service_pb2.GetRouterRequest(name=ROUTER)
            )
        if not router.rules:
            rule = router_service_pb2.Rule(priority=MOCK_PRIORITY, provider=PROVIDER, models=["*"])
            await self._administrator.ask(
                stub.CreateRule, router_service_pb2.CreateRuleRequest(router=ROUTER, rule=rule)
            )

    async def _create_price(self) -> None:
        stub = price_service_pb2_grpc.PriceServiceStub(self._channel)
        existing = await self._administrator.ask(
            stub.ListPrices,
            price_service_pb2.ListPricesRequest(provider=PROVIDER, model=PRICED_MODELS),
        )
        if existing.prices:
            return
        rates = rates_pb2.Rates(
            input_nanousd_per_million=INPUT_NANOUSD_PER_MILLION,
            output_nanousd_per_million=OUTPUT_NANOUSD_PER_MILLION,
        )
        price = price_service_pb2.Price(provider=PROVIDER, model=PRICED_MODELS, rates=rates)
        await self._administrator.ask(stub.SetPrice, price_service_pb2.SetPriceRequest(price=price))


@contextlib.asynccontextmanager
async def seeder(admin_address: str, admin_token: str) -> AsyncIterator[Seeder]:
    """Hold a connection to the control plane open.

    Raises:
        StartError: The control plane refused a call or did not answer it.
    """
    async with grpc.aio.insecure_channel(admin_address, options=_CHANNEL_OPTIONS) as channel:
        try:
            yield Seeder(channel, admin_token)
        except grpc.aio.AioRpcError as error:
            raise StartError(
                f"the control plane refused to be set up: {error.code().name}: {error.details()}"
            ) from error


def _endpoints_of(mock_url: str) -> list[resources_pb2.Endpoint]:
    return endpoints_of({DialectName.OPENAI: f"{mock_url}/v1", DialectName.ANTHROPIC: mock_url})
