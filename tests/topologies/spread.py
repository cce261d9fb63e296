"""A sharded limiter under test, with clients that look behind it on whichever server it is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from dataplane.domain.limiting import Demand, Layer, LayerPlan, SubjectKind, Unit, Window, plan_of
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.crossings import Crossing
from dataplane.limits.desk import open_counters
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.reservation import Reservation
from dataplane.limits.sharded import ShardedLimiter
from dataplane.limits.split_reservation import SplitReservation
from dataplane.limits.topology import TargetOf, targets_at

# Three organizations of different buckets. As `machinery` divides the slots among three nodes each is
# on another one, and the shared counters are beside those of the third.
ACME, BOND, CORP = "org_0", "org_2", "org_4"
ORGANIZATIONS = (ACME, BOND, CORP)
# Every kind of counter that organizations share.
SHARED = (
    Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.RATE, 100, every_ms=60_000),
    Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.MINUTE, 1_000),
    Layer(SubjectKind.GLOBAL, "", Unit.TOKENS, Window.MINUTE, 1_000_000),
    Layer(SubjectKind.GLOBAL, "", Unit.SPEND, Window.TOTAL, 1_000_000),
    Layer(SubjectKind.IP, "1a2b", Unit.REQUESTS, Window.TOTAL, 1_000),
    Layer(SubjectKind.ENDPOINT, "chat", Unit.TOKENS, Window.TOTAL, 1_000_000),
    Layer(SubjectKind.MODEL, "gpt-4.1", Unit.PARALLEL, Window.NONE, 100),
)


def own_layers(organization_id: str) -> tuple[Layer, ...]:
    """Return every kind of counter that an organization has to itself."""
    user, key = f"u_{organization_id}", f"k_{organization_id}"
    return (
        Layer(SubjectKind.ORGANIZATION, organization_id, Unit.SPEND, Window.TOTAL, 1_000),
        Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.RATE, 50, every_ms=60_000),
        Layer(SubjectKind.USER, user, Unit.REQUESTS, Window.TOTAL, 500),
        Layer(SubjectKind.USER, user, Unit.TOKENS, Window.TOTAL, 100_000),
        Layer(SubjectKind.KEY, key, Unit.REQUESTS, Window.MINUTE, 300),
        Layer(SubjectKind.KEY, key, Unit.TOKENS, Window.MINUTE, 100_000),
        Layer(SubjectKind.KEY, key, Unit.PARALLEL, Window.NONE, 20),
    )


def plan_for(
    organization_id: str, *more: Layer, shared: Iterable[Layer] = SHARED, own: bool = True
) -> LayerPlan:
    """Return all of these layers; one of `more` takes the place of the one that it counts with."""
    layers = [*shared, *(own_layers(organization_id) if own else ())]
    counted = {_counter(each): each for each in (*layers, *more)}
    return plan_of(counted.values(), organization_id=organization_id)


def _counter(layer: Layer) -> tuple[str, ...]:
    return (layer.subject_kind, layer.subject_id, layer.unit, layer.window)


@dataclass(slots=True)
class Spread:
    """A limiter over many tags, and the servers under it."""

    limiter: ShardedLimiter
    target_of: TargetOf
    servers: list[redis.Redis]
    client_of: Callable[[str], redis.Redis]
    crossings: list[Crossing] = field(default_factory=list)

    async def reserve(
        self, request_id: str, plan: LayerPlan, tokens: int = 10, cost: int = 100, **more: Any
    ) -> Reservation | SplitReservation:
        return await self.limiter.reserve(request_id, plan, Demand(tokens, cost, **more), b"{}")

    async def balances(self, plan: LayerPlan) -> dict[str, tuple[int, int]]:
        """Return what each layer has settled and holds, by its name."""
        found = await self.limiter.balances(plan)
        assert [each.layer for each in found] == list(plan.layers)
        return {each.layer.name: (each.settled, each.held) for each in found}

    def leases(self, hash_tag: str) -> set[str]:
        """Return the requests in flight under a tag."""
        members: Any = self.client_of(hash_tag).zrange(Keyspace(hash_tag).leases, 0, -1)
        return {each.decode() for each in members}

    async def until_available(self, *organizations: str) -> None:
        tags = {SHARED_TAG, *map(bucket_tag, organizations)}
        async with asyncio.timeout(10.0):
            for tag in tags:
                await self.limiter.open(tag)
            while tags & self.limiter.unavailable_tags:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def spread_over(
    url: str,
    servers: list[redis.Redis],
    client_of: Callable[[str], redis.Redis],
    *,
    organizations: Iterable[str] = ORGANIZATIONS,
) -> AsyncIterator[Spread]:
    """Connect to servers that were emptied, with open counters of some organizations."""
    for server in servers:
        server.flushall()
    target_of = targets_at(url, RedisMode.ORG)
    for tag in (SHARED_TAG, *map(bucket_tag, organizations)):
        await open_counters(target_of(tag), tag)
    crossings: list[Crossing] = []
    limiter = await ShardedLimiter.connect(
        target_of, timeout_seconds=1.0, on_crossing=crossings.append, fresh_seconds=0.2
    )
    try:
        yield Spread(limiter, target_of, servers, client_of, crossings)
    finally:
        await limiter.aclose(1.0)
