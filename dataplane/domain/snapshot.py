"""The configuration as a request sees it: frozen, indexed, complete.

A snapshot is built beside the running one and swapped in with one assignment; a request keeps
the one that it began with.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from dataplane.domain.client_addresses import address_prefix
from dataplane.domain.entitlements import Circumstances, Entitlements, counts_addresses
from dataplane.domain.limiting import LayerPlan
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.prices import PriceBook
from dataplane.domain.principals import ApiKey, Device, Principal, Service, SubjectLimits, Tier
from dataplane.domain.providers import Router


@dataclass(frozen=True, slots=True)
class Position:
    """Which content this is; see `Position` in the contract."""

    config_epoch: str
    revision: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a request needs to know.

    `limits` maps a subject (`user:<id>`, `ip:<prefix>`, `endpoint:chat`, `model:gpt-4o`, `global`) to
    what is configured for it. `has_address_limits` says whether an `ip:` is among them;
    `limited_endpoints` and `limited_models` name all of those kinds.
    `has_fail_open` says whether an organization is served while counters cannot be asked.
    `revoked` are subjects that a revocation took out ahead of the transfer that will contain it, as
    (kind, id) with the kinds `key`, `device`, `user`, `organization`. `applied_at_ms` is Unix
    milliseconds.
    """

    position: Position
    service: Service
    keys_by_sha256: Mapping[bytes, ApiKey]
    routers: Mapping[str, Router]
    prices: PriceBook
    limits: Mapping[str, SubjectLimits]
    has_address_limits: bool = False
    limited_endpoints: frozenset[str] = frozenset()
    limited_models: frozenset[str] = frozenset()
    has_fail_open: bool = False
    devices_by_sha256: Mapping[bytes, Device] = field(default_factory=dict)
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    revoked: AbstractSet[tuple[str, str]] = frozenset()
    applied_at_ms: int = 0
    _plans: PlanCache[Principal] = field(default_factory=PlanCache, compare=False, repr=False)
    _call_plans: PlanCache[tuple[Principal, str, str, str]] = field(
        default_factory=PlanCache, compare=False, repr=False
    )

    def plan_for(
        self, principal: Principal, address: str, endpoint: str, model: str, now_ms: int
    ) -> LayerPlan:
        """Return the layers that count a call at `now_ms`.

        They are compiled on the first call and kept until a temporary limit among them expires: for
        callers whose address, endpoint and model do not matter one plan each, for the others one in
        each of these circumstances. Only snapshots with the same service, limits and tiers share their
        caches, and a caller that changes is another one, so a changed limit can never be missed.

        Args:
            principal: Who calls.
            address: From where; empty has no layers of addresses.
            endpoint: The endpoint class; empty has no layers of endpoints.
            model: The name that the provider is asked for; empty has no layers of models.
            now_ms: Unix milliseconds.
        """
        plan = self._plans.get(principal)
        if plan is None:
            return self._plan_of_call(principal, address, endpoint, model, now_ms)
        if plan.valid_until_ms is not None and plan.valid_until_ms <= now_ms:
            plan = self._plans[principal] = self._plan(principal, Circumstances(), now_ms)
        return plan

    def _plan_of_call(
        self, principal: Principal, address: str, endpoint: str, model: str, now_ms: int
    ) -> LayerPlan:
        by_address = self.has_address_limits or counts_addresses(self.tiers, principal)
        if not (by_address or self.limited_endpoints or self.limited_models):
            plan = self._plans[principal] = self._plan(principal, Circumstances(), now_ms)
            return plan
        prefix = address_prefix(address) if by_address else ""
        # Only words that the configuration holds: callers must not choose what is kept.
        endpoint = endpoint if endpoint in self.limited_endpoints else ""
        model = model if model in self.limited_models else ""
        # Not `Circumstances`: making one takes longer than finding the plan.
        key = principal, prefix, endpoint, model
        known = self._call_plans.get(key)
        if known is not None and (known.valid_until_ms is None or now_ms < known.valid_until_ms):
            return known
        plan = self._plan(principal, Circumstances(prefix, endpoint, model), now_ms)
        self._call_plans[key] = plan
        return plan

    def _plan(self, principal: Principal, circumstances: Circumstances, now_ms: int) -> LayerPlan:
        entitlements = Entitlements(self.service, self.limits, self.tiers)
        return entitlements.plan(principal, circumstances, now_ms)
