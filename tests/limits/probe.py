"""A limiter under test, with a client of its own that looks behind it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import redis

from dataplane.domain.limiting import Demand, LayerPlan
from dataplane.limits.connection import TIMEOUT_SECONDS
from dataplane.limits.counters import Keyspace
from dataplane.limits.crossings import Crossing
from dataplane.limits.desk import open_counters
from dataplane.limits.limiter import Limiter
from dataplane.limits.reservation import Reservation

PATIENCE_SECONDS = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; it is asked again every few milliseconds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Probe:
    """A limiter in a key space of its own."""

    limiter: Limiter
    redis: redis.Redis
    redis_url: str
    keyspace: Keyspace
    hash_tag: str
    crossings: list[Crossing] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def on(
        cls, redis_url: str, is_cold: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> AsyncIterator["Probe"]:
        """Connect a limiter; to cold counters if the test wants to see what it does with them."""
        hash_tag = secrets.token_hex(6)
        if not is_cold:
            await open_counters(redis_url, hash_tag)
        crossings: list[Crossing] = []
        limiter = await Limiter.connect(
            redis_url,
            hash_tag=hash_tag,
            timeout_seconds=timeout_seconds,
            on_crossing=crossings.append,
        )
        client = redis.Redis.from_url(redis_url)
        try:
            yield cls(limiter, client, redis_url, Keyspace(hash_tag), hash_tag, crossings)
        finally:
            await limiter.aclose(1.0)
            client.close()

    async def reserve(
        self, request_id: str, plan: LayerPlan, tokens: int = 1, cost: int = 1
    ) -> Reservation:
        return await self.limiter.reserve(request_id, plan, Demand(tokens, cost), b"meta")

    async def balances(self, plan: LayerPlan) -> list[tuple[int, int]]:
        return [(each.settled, each.held) for each in await self.limiter.balances(plan)]

    def reservation(self, request_id: str) -> bytes | None:
        value = self.redis.get(self.keyspace.reservation(request_id))
        assert value is None or isinstance(value, bytes)
        return value

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is asked again every few milliseconds."""
        await until(condition)
