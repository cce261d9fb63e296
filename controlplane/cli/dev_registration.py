"""How `tollkeeper dev` registers a real provider: endpoints, credential, rule and prices, through the admin API.

Every step leaves alone what it finds in another state than an earlier start left it: that is an administrator's.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask
from tollkeeper.admin.v1 import (
    credential_service_pb2,
    credential_service_pb2_grpc,
    price_service_pb2,
    price_service_pb2_grpc,
    provider_service_pb2,
    provider_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.cli.dev_administrator import Administrator
from controlplane.cli.dev_providers import RealProvider
from controlplane.cli.dev_public_prices import PUBLIC_PRICES, PublicPrice
from controlplane.cli.endpoints import DialectName

# Before the rule of the mock, which takes every model; there is room for an administrator's on both sides.
REAL_PRIORITY: Final = 10
# The control plane numbers a credential's secret by the first 8 bytes of its digest.
_FINGERPRINT_CHARACTERS: Final = 16
# A page of this size holds all prices of a provider that nobody else administers.
_PRICES_PER_PAGE: Final = 1_000


class Registration:
    """Registers providers on one router, before the rule of the provider that takes what is left."""

    def __init__(self, administrator: Administrator, router: str, last_provider: str) -> None:
        self._administrator = administrator
        self._router = router
        self._last_provider = last_provider

    async def register(
        self, provider: RealProvider, former_endpoints: Collection[Mapping[DialectName, str]]
    ) -> str | None:
        """Create what is missing, and renew the secret if it is another one.

        Args:
            provider: Whom to register.
            former_endpoints: Where earlier starts said that it is.

        Returns:
            Why something was left alone, for the user; None when all is done.
        """
        if not await self._settle_provider(provider, former_endpoints):
            return f"the provider {provider.name} was changed by an administrator and is left alone"
        await self._settle_credential(provider)
        await self._settle_prices(provider)
        return await self._settle_rule(provider)

    async def _settle_provider(
        self, provider: RealProvider, former_endpoints: Collection[Mapping[DialectName, str]]
    ) -> bool:
        """Create the provider or move it; say whether it may have our secret."""
        stub = provider_service_pb2_grpc.ProviderServiceStub(self._administrator.channel)
        wanted = provider_service_pb2.Provider(
            name=provider.name, kind=provider.kind, endpoints=endpoints_of(provider.endpoints)
        )
        request = provider_service_pb2.CreateProviderRequest(provider=wanted)
        if await self._administrator.create(stub.CreateProvider, request) is not None:
            return True
        found = await self._administrator.ask(
            stub.GetProvider, provider_service_pb2.GetProviderRequest(name=provider.name)
        )
        if found.kind != provider.kind:
            return False
        if list(found.endpoints) == list(wanted.endpoints):
            return True
        # The secret must not go to an address that somebody else chose.
        if not any(list(found.endpoints) == endpoints_of(each) for each in former_endpoints):
            return False
        wanted.etag = found.etag
        await self._administrator.ask(
            stub.UpdateProvider,
            provider_service_pb2.UpdateProviderRequest(
                provider=wanted, update_mask=FieldMask(paths=["endpoints"])
            ),
        )
        return True

    async def _settle_credential(self, provider: RealProvider) -> None:
        stub = credential_service_pb2_grpc.CredentialServiceStub(self._administrator.channel)
        name = provider.credential_name
        found = await self._administrator.find(
            stub.GetCredential, credential_service_pb2.GetCredentialRequest(name=name)
        )
        if found is None:
            await self._administrator.ask(
                stub.CreateCredential,
                credential_service_pb2.CreateCredentialRequest(
                    credential=credential_service_pb2.Credential(name=name), secret=provider.secret
                ),
            )
        elif found.fingerprint != _fingerprint(provider.secret):
            await self._administrator.ask(
                stub.RotateCredential,
                credential_service_pb2.RotateCredentialRequest(name=name, secret=provider.secret),
            )

    async def _settle_rule(self, provider: RealProvider) -> str | None:
        stub = router_service_pb2_grpc.RouterServiceStub(self._administrator.channel)
        router = await self._administrator.find(
            stub.GetRouter, router_service_pb2.GetRouterRequest(name=self._router)
        )
        if router is None:
            return f"there is no router {self._router}: no model goes to {provider.name}"
        if any(rule.provider == provider.name for rule in router.rules):
            return None
        priority = _priority_before(router.rules, self._last_provider)
        if priority is None:
            return (
                f"no model goes to {provider.name}: nothing comes before the rule of "
                f"{self._last_provider} in the router {self._router}, whose priority is 0"
            )
        rule = router_service_pb2.Rule(
            priority=priority, provider=provider.name, models=provider.models
        )
        await self._administrator.ask(
            stub.CreateRule, router_service_pb2.CreateRuleRequest(router=self._router, rule=rule)
        )
        return None

    async def _settle_prices(self, provider: RealProvider) -> None:
        stub = price_service_pb2_grpc.PriceServiceStub(self._administrator.channel)
        existing = await self._administrator.ask(
            stub.ListPrices,
            price_service_pb2.ListPricesRequest(provider=provider.name, page_size=_PRICES_PER_PAGE),
        )
        priced = {price.model for price in existing.prices}
        for price in PUBLIC_PRICES[provider.kind]:
            if price.model not in priced:
                await self._administrator.ask(
                    stub.SetPrice,
                    price_service_pb2.SetPriceRequest(price=_message(provider.name, price)),
                )


def endpoints_of(endpoints: Mapping[DialectName, str]) -> list[resources_pb2.Endpoint]:
    """Return endpoints as the contract writes them."""
    return [
        resources_pb2.Endpoint(
            dialect=resources_pb2.Dialect.Value(f"DIALECT_{dialect.name}"), base_url=url
        )
        for dialect, url in endpoints.items()
    ]


def _priority_before(rules: Iterable[router_service_pb2.Rule], provider: str) -> int | None:
    """Return a priority before each rule of `provider`; None when nothing comes before it."""
    first = min((rule.priority for rule in rules if rule.provider == provider), default=None)
    if first is None:
        return REAL_PRIORITY
    # Set-ups of the first release have the mock's rule at 1.
    return min(REAL_PRIORITY, first - 1) if first > 0 else None


def _fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()[:_FINGERPRINT_CHARACTERS]


def _message(provider: str, price: PublicPrice) -> price_service_pb2.Price:
    return price_service_pb2.Price(
        provider=provider,
        model=price.model,
        rates=rates_pb2.Rates(
            input_nanousd_per_million=price.input_nanousd_per_million,
            output_nanousd_per_million=price.output_nanousd_per_million,
            cache_read_nanousd_per_million=price.cache_read_nanousd_per_million,
        ),
    )
