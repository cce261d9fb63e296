"""Everything that was compiled: what the next change starts from.

It never changes. A change makes another state, which shares all with this one that it did not touch: so
whoever gives up in between leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from dataplane.control.compiling.references import References
from dataplane.control.holdings import Key
from dataplane.control.read_providers import OwnedCredential
from dataplane.domain.layer_bounds import LimitShapes
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.prices import Price, PriceBook
from dataplane.domain.principals import (
    ApiKey,
    Device,
    Organization,
    Principal,
    Service,
    SubjectLimits,
    Tier,
    User,
)
from dataplane.domain.providers import Provider, Router
from dataplane.domain.sharded_map import ShardedMap

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A leaf that was set aside."""

    kind: int
    resource_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Callers(Generic[V]):
    """Credentials of one kind.

    Attributes:
        by_sha256: Those that work, by their hash.
        withheld: Hashes that find nobody although a credential with them can be read, and the ids of
            those: one that more layers count than may, or several that share the hash.
    """

    by_sha256: ShardedMap[bytes, V] = field(default_factory=ShardedMap)
    withheld: ShardedMap[bytes, tuple[str, ...]] = field(default_factory=ShardedMap)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is configured for subjects, and what follows from it.

    Attributes:
        by_subject: As in `Snapshot.limits`.
        ends_ms: When the first temporary limit of a subject ends, in Unix milliseconds.
        shapes: Has noted each of them.
        endpoints: The endpoint classes among the subjects.
        models: The models among the subjects.
    """

    by_subject: ShardedMap[str, SubjectLimits] = field(default_factory=ShardedMap)
    ends_ms: ShardedMap[str, int] = field(default_factory=ShardedMap)
    shapes: LimitShapes = field(default_factory=LimitShapes)
    endpoints: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """All of it, by ids unless it says otherwise.

    Attributes:
        referrers: For each kind that others refer to: who names which id, whether or not it is there. Of
            routers only one that is not there, by those who work: whoever does not is read again before.
        shared: What the number of a caller's layers depends on besides those who call.
        aside: All that is set aside; `quarantined` are the same.
        fail_open: How many organizations are served while counters cannot be asked.
        plans: What was compiled for callers, by this state's service, limits and tiers; it fills up.
        call_plans: The same for callers in circumstances.
    """

    services: ShardedMap[str, Service] = field(default_factory=ShardedMap)
    organizations: ShardedMap[str, Organization] = field(default_factory=ShardedMap)
    credentials: ShardedMap[str, OwnedCredential] = field(default_factory=ShardedMap)
    providers: ShardedMap[str, Provider] = field(default_factory=ShardedMap)
    routers: ShardedMap[str, Router] = field(default_factory=ShardedMap)
    tiers: ShardedMap[str, Tier] = field(default_factory=ShardedMap)
    users: ShardedMap[str, User] = field(default_factory=ShardedMap)
    limits: Limits = field(default_factory=Limits)
    prices: ShardedMap[str, Price] = field(default_factory=ShardedMap)
    book: PriceBook = field(default_factory=PriceBook)
    keys: Callers[ApiKey] = field(default_factory=Callers)
    devices: Callers[Device] = field(default_factory=Callers)
    aside: ShardedMap[Key, Quarantined] = field(default_factory=ShardedMap)
    quarantined: tuple[Quarantined, ...] = ()
    referrers: Mapping[int, References] = field(default_factory=dict)
    shared: tuple[object, ...] = ()
    fail_open: int = 0
    plans: PlanCache[Principal] = field(default_factory=lambda: PlanCache(0))
    call_plans: PlanCache[tuple[Principal, str, str, str]] = field(default_factory=PlanCache)


Map = ShardedMap[Any, Any] | PlanCache[Any]  # Any: nobody looks at what they hold


def maps_of(value: object) -> list[Map]:
    """Return the maps that a state, or a part of one, consists of."""
    if isinstance(value, ShardedMap | PlanCache):
        return [value]
    if isinstance(value, State | Callers | Limits):
        return [found for each in fields(value) for found in maps_of(getattr(value, each.name))]
    if isinstance(value, References):
        return [value.members]
    if isinstance(value, dict):
        return [found for each in value.values() for found in maps_of(each)]
    return []
