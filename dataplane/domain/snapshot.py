"""The configuration as a request sees it: frozen, indexed, complete.

A snapshot is built beside the running one and swapped in with one assignment; a request keeps
the one that it began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.domain.entitlements import layers_for
from dataplane.domain.limiting import LayerPlan, plan_of
from dataplane.domain.prices import PriceBook
from dataplane.domain.principals import ApiKey, LimitEntry, Service
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

    `limits` maps a subject (`user:<id>`, `global`) to its configured limits. `revoked` are
    subjects that a revocation took out ahead of the transfer that will contain it, as
    (kind, id) with the kinds `key`, `user`, `organization`. `applied_at_ms` is Unix milliseconds.
    """

    position: Position
    service: Service
    keys_by_sha256: Mapping[bytes, ApiKey]
    routers: Mapping[str, Router]
    prices: PriceBook
    limits: Mapping[str, tuple[LimitEntry, ...]]
    revoked: frozenset[tuple[str, str]] = frozenset()
    applied_at_ms: int = 0
    _plans: dict[str, LayerPlan] = field(default_factory=dict, compare=False, repr=False)

    def plan_for(self, key: ApiKey) -> LayerPlan:
        """Return the layers that count a call of `key`, compiled on its first call.

        The cache lives and dies with the snapshot, so a changed limit can never be missed.
        """
        plan = self._plans.get(key.key_id)
        if plan is None:
            layers = layers_for(self.service, self.limits, key)
            plan = self._plans[key.key_id] = plan_of(layers)
        return plan
