"""What `tollkeeper doctor` asks a control plane: how it and its data planes are, and what is missing to serve calls."""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer

from controlplane.cli.connection import SetUpError, find_admin_settings
from controlplane.cli.findings import Finding, unwell, well
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.paging import all_pages
from controlplane.cli.status_report import faults, is_settled, remarks

if TYPE_CHECKING:
    import grpc
    from tollkeeper.admin.v1 import (
        node_service_pb2,
        node_service_pb2_grpc,
        operations_service_pb2,
        operations_service_pb2_grpc,
        price_service_pb2,
        price_service_pb2_grpc,
        provider_service_pb2,
        provider_service_pb2_grpc,
        router_service_pb2,
        router_service_pb2_grpc,
    )
else:
    node_service_pb2 = imported_on_use("tollkeeper.admin.v1.node_service_pb2")
    node_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.node_service_pb2_grpc")
    operations_service_pb2 = imported_on_use("tollkeeper.admin.v1.operations_service_pb2")
    operations_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.operations_service_pb2_grpc")
    price_service_pb2 = imported_on_use("tollkeeper.admin.v1.price_service_pb2")
    price_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.price_service_pb2_grpc")
    provider_service_pb2 = imported_on_use("tollkeeper.admin.v1.provider_service_pb2")
    provider_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.provider_service_pb2_grpc")
    router_service_pb2 = imported_on_use("tollkeeper.admin.v1.router_service_pb2")
    router_service_pb2_grpc = imported_on_use("tollkeeper.admin.v1.router_service_pb2_grpc")

# A change reaches every data plane within a second: one that is behind after two stays behind.
SETTLING_S: Final = 2.0
_MOST_NAMED: Final = 10


def service_findings() -> Iterator[Finding]:
    """Look at the control plane that an administrator's commands here would call."""
    try:
        settings = find_admin_settings()
    except typer.BadParameter as error:
        yield unwell("control plane", error.message, "correct the setting")
        return
    except SetUpError as error:
        yield well("control plane", f"not looked at: {error}")
        return
    # Loads gRPC.
    from controlplane.cli.channel import ControlPlaneError, connected

    try:
        with connected(settings) as channel:
            yield from _control_plane(channel, str(settings.address))
            yield from _routers(channel)
    except ControlPlaneError as error:
        yield unwell(
            "control plane",
            str(error),
            "start it, or correct TOLLKEEPER_ADMIN_ADDRESS, TOLLKEEPER_ADMIN_TOKEN and TOLLKEEPER_CA",
        )


def _control_plane(channel: "grpc.Channel", address: str) -> Iterator[Finding]:
    status = operations_service_pb2_grpc.OperationsServiceStub(channel).GetServiceStatus(
        operations_service_pb2.GetServiceStatusRequest()
    )
    node_service = node_service_pb2_grpc.NodeServiceStub(channel)
    nodes = node_service.ListNodes(node_service_pb2.ListNodesRequest())
    if not is_settled(nodes):
        time.sleep(SETTLING_S)
        nodes = node_service.ListNodes(node_service_pb2.ListNodesRequest())
    detail = f"{address} is version {status.version} on {status.database}"
    yield well("control plane", "; ".join((detail, *remarks(status, nodes))))
    wrong = faults(status, nodes, None)
    for sentence in wrong:
        yield unwell("data planes", sentence, "see `tollkeeper status` and that program's log")
    if not wrong:
        count = len(nodes.nodes)
        yield well("data planes", f"{count} data plane{'' if count == 1 else 's'} in step")


def _routers(channel: "grpc.Channel") -> Iterator[Finding]:
    routers = list(
        all_pages(
            router_service_pb2_grpc.RouterServiceStub(channel).ListRouters,
            router_service_pb2.ListRoutersRequest(),
            lambda page: page.routers,
        )
    )
    kinds = {
        provider.name: provider.kind
        for provider in all_pages(
            provider_service_pb2_grpc.ProviderServiceStub(channel).ListProviders,
            provider_service_pb2.ListProvidersRequest(),
            lambda page: page.providers,
        )
    }
    prices = list(
        all_pages(
            price_service_pb2_grpc.PriceServiceStub(channel).ListPrices,
            price_service_pb2.ListPricesRequest(),
            lambda page: page.prices,
        )
    )
    yield _rules_finding(routers)
    yield _prices_finding(unpriced_models(routers, kinds, prices, datetime.now(UTC)))


def _rules_finding(routers: Iterable["router_service_pb2.Router"]) -> Finding:
    empty = [router.name for router in routers if not router.rules]
    if not empty:
        return well("routers", "every router has rules")
    return unwell(
        "routers",
        f"no rules: {_named(empty)}; their callers are refused with no_route",
        f"run `tollkeeper rule create {empty[0]} …`, or delete the router",
    )


def _prices_finding(unpriced: list[str]) -> Finding:
    if not unpriced:
        return well("prices", "every model that a rule names has a price")
    return unwell(
        "prices",
        f"no price: {_named(unpriced)}; calls of these are refused with model_not_priced",
        "run `tollkeeper price set --provider … --model …`",
    )


def unpriced_models(
    routers: Iterable["router_service_pb2.Router"],
    kinds: Mapping[str, str],
    prices: Iterable["price_service_pb2.Price"],
    now: datetime,
) -> list[str]:
    """Return the models that rules name and that have no price yet, as `provider model`, sorted.

    What only a pattern stands for is not among them: nobody can list it.

    Args:
        routers: With their rules.
        kinds: Each provider's kind, by its name.
        prices: All of them.
        now: Prices that begin later are not there yet.
    """
    known = [price for price in prices if price.effective_from.seconds <= now.timestamp()]
    missing: set[str] = set()
    for rule in (rule for router in routers for rule in router.rules):
        sellers = {rule.provider, kinds.get(rule.provider, "")}
        patterns = [price.model for price in known if price.provider in sellers]
        named = {*(model for model in rule.models if "*" not in model), *rule.aliases}
        for model in (rule.aliases.get(name, name) for name in named):
            if not any(_matches(pattern, model) for pattern in patterns):
                missing.add(f"{rule.provider} {model}")
    return sorted(missing)


def _matches(pattern: str, model: str) -> bool:
    """Return whether a price is for a model: by its name, or by a beginning that ends with `*`."""
    if pattern.endswith("*"):
        return model.startswith(pattern[:-1])
    return pattern == model


def _named(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
