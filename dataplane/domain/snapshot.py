"""The configuration as a request sees it: frozen, indexed, complete.

A snapshot is built beside the running one and swapped in with one assignment; a request keeps
the one that it began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dataplane.domain.client_addresses import address_prefix
from dataplane.domain.entitlements import counts_addresses, layers_for
from dataplane.domain.limiting import LayerPlan, plan_of
from dataplane.domain.prices import PriceBook
from dataplane.domain.principals import ApiKey, Device, LimitEntry, Principal, Service, Tier
from dataplane.domain.providers import Router

# Plans of callers at addresses: about 4 KB each with what the limiter keeps of them.
_MAX_ADDRESS_PLANS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Position:
    """Which content this is; see `Position` in the contract."""

    config_epoch: str
    revision: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a request needs to know.

    `limits` maps a subject (`user:<id>`, `ip:<prefix>`, `global`) to its configured limits;
    `has_address_limits` says whether an `ip:` is among them.
    `revoked` are subjects that a revocation took out ahead of the transfer that will contain it, as
    (kind, id) with the kinds `key`, `device`, `user`, `organization`. `applied_at_ms` is Unix
    milliseconds.
    """

    position: Position
    service: Service
    keys_by_sha256: Mapping[bytes, ApiKey]
    routers: Mapping[str, Router]
    prices: PriceBook
    limits: Mapping[str, tuple[LimitEntry, ...]]
    has_address_limits: bool = False
    devices_by_sha256: Mapping[bytes, Device] = field(default_factory=dict)
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    revoked: frozenset[tuple[str, str]] = frozenset()
    applied_at_ms: int = 0
    _plans: dict[Principal, LayerPlan] = field(default_factory=dict, compare=False, repr=False)
    _address_plans: dict[tuple[Principal, str], LayerPlan] = field(
        default_factory=dict, compare=False, repr=False
    )

    def plan_for(self, principal: Principal, address: str) -> LayerPlan:
        """Return the layers that count a call of `principal` from `address`.

        They are compiled on the first call and kept: for callers whose address does not matter one
        plan each, for the others one per address. The caches live and die with the snapshot, so a
        changed limit can never be missed.
        """
        plan = self._plans.get(principal)
        if plan is not None:
            return plan
        if not (self.has_address_limits or counts_addresses(self.tiers, principal)):
            plan = self._plans[principal] = self._plan(principal, "")
            return plan
        prefix = address_prefix(address)
        plan = self._address_plans.get((principal, prefix))
        if plan is None:
            if len(self._address_plans) >= _MAX_ADDRESS_PLANS:
                # Whoever still calls is back with the next request; a caller picks no victim here.
                self._address_plans.clear()
            plan = self._address_plans[principal, prefix] = self._plan(principal, prefix)
        return plan

    def _plan(self, principal: Principal, prefix: str) -> LayerPlan:
        return plan_of(layers_for(self.service, self.limits, self.tiers, principal, prefix))
