"""Many processes, one subject: what the race test and its control run in each process."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import redis.asyncio

from dataplane.domain.limiting import (
    Demand,
    Denied,
    LayerPlan,
    LimitsUnavailable,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.limits.crossings import Crossing
from dataplane.limits.limiter import Limiter
from tests.limits.plans import USD, layer

RESERVED_NANOUSD = 1_000_000
# So near to it that the organization's budget comes to 80 percent, and not to 100.
LEAST_COST_NANOUSD = 900_000
CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Tally:
    """What one process saw."""

    admitted: int
    spent_nanousd: int
    crossings: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does; `limit` requests in all may be admitted."""

    redis_url: str
    hash_tag: str
    number: int
    requests: int
    limit: int


# One request: its id and what it will have cost; None when it was refused.
Attempt = Callable[[str, int], Awaitable[int | None]]


def plan(limit: int) -> LayerPlan:
    """Return a plan without calendar days, so that midnight changes nothing.

    The organization's budget is what all that may be admitted reserve: it refuses nobody.
    """
    return plan_of(
        [
            layer(Unit.REQUESTS, Window.TOTAL, limit),
            layer(Unit.SPEND, Window.TOTAL, 1_000_000 * USD),
            layer(
                Unit.SPEND, Window.TOTAL, limit * RESERVED_NANOUSD, SubjectKind.ORGANIZATION, "o_1"
            ),
            layer(Unit.PARALLEL, Window.NONE, 10_000, SubjectKind.KEY, "k_1"),
        ]
    )


def run_limiter(task: Task) -> Tally:
    """Run one process's requests through the limiter."""
    return asyncio.run(_limiter(task))


def run_control(task: Task) -> Tally:
    """Run them through a check followed by an increment, as naive limiters do."""
    return asyncio.run(_control(task))


async def _limiter(task: Task) -> Tally:
    # Patient: the machine that runs the tests may be busy, and this is not about time.
    crossings: list[Crossing] = []
    limiter = await Limiter.connect(
        task.redis_url,
        hash_tag=task.hash_tag,
        timeout_seconds=5.0,
        on_crossing=crossings.append,
    )
    subject = plan(task.limit)

    async def attempt(request_id: str, cost: int) -> int | None:
        while True:
            try:
                reservation = await limiter.reserve(
                    request_id, subject, Demand(0, RESERVED_NANOUSD), b""
                )
            except Denied:
                return None
            except LimitsUnavailable:
                # As a client would: a new request. What the old one took is released.
                request_id += "+"
                continue
            await asyncio.sleep(0)
            reservation.settle(0, cost)
            return cost

    tally = await _all(task, attempt)
    assert await limiter.aclose(10.0) == 0
    return replace(tally, crossings=tuple(each.percent for each in crossings))


async def _control(task: Task) -> Tally:
    client = redis.asyncio.Redis.from_url(task.redis_url)
    count, spent = f"{task.hash_tag}:count", f"{task.hash_tag}:spent"

    async def attempt(_request_id: str, cost: int) -> int | None:
        if int(await client.get(count) or 0) >= task.limit:
            return None
        await client.incrby(count, 1)
        await client.incrby(spent, cost)
        return cost

    tally = await _all(task, attempt)
    await client.aclose()
    return tally


async def _all(task: Task, attempt: Attempt) -> Tally:
    costs = random.Random(task.number)
    waiting = iter(range(task.requests))
    admitted: list[int] = []

    async def worker() -> None:
        for number in waiting:
            cost = costs.randint(LEAST_COST_NANOUSD, RESERVED_NANOUSD)
            spent = await attempt(f"{task.number}-{number}", cost)
            if spent is not None:
                admitted.append(spent)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return Tally(len(admitted), sum(admitted))
