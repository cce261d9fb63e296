"""The whole of a process' counting as the application uses it, in both modes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dataplane import embedded_redis
from dataplane.counting import Counting
from dataplane.domain.calls import UsageState
from dataplane.domain.counters import CounterTask, CounterTaskKind
from dataplane.domain.guards import Check, Guard
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.principals import SubjectLimits
from dataplane.limits.buckets import bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk
from dataplane.limits.guards import Guards
from dataplane.limits.recovery import Leftover, settle_leftovers
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.sharded import ShardedLimiter
from dataplane.maintenance.stopping import stop
from tests.maintenance.book import Book
from tests.maintenance.nodes import Node, caller, entry, now_ms, snapshot_of, until
from tests.maintenance.post import Post
from tests.topologies.machinery import client
from tests.topologies.spread import ACME

CALLER = caller("u_1", ACME)
BUDGET = entry(Unit.SPEND, Window.MONTH, 1_000)
SNAPSHOT = snapshot_of(CALLER, limits={f"organization:{ACME}": SubjectLimits((BUDGET,))})


class Delivering(Post):
    """A reporter that a process can wait for at its end."""

    async def delivered(self, deadline_seconds: float) -> bool:
        self.deliver()
        return True


@pytest.fixture(params=RedisMode)
async def node(
    request: pytest.FixtureRequest, plain_redis: embedded_redis.RunningRedis
) -> AsyncIterator[Node]:
    """A data plane on counters that were empty."""
    with client(plain_redis) as server:
        server.flushall()
    book, snapshots = Book(), [SNAPSHOT]
    post: Any = Delivering(book)
    ledger: Any = book
    book.nodes.add("node")
    async with Counting.open(
        plain_redis.url, request.param, post, ledger, lambda: snapshots[-1], "node", now_ms
    ) as counting:
        counting.start_maintaining()
        running: Any = counting
        node = Node("node", running.limiter, running, post, running.maintainer, snapshots)
        delivering = asyncio.create_task(post.run())
        await until(lambda: _serves(counting))
        yield node
        await stop(delivering)


def _serves(counting: Counting) -> bool:
    limiter = counting.limiter
    if isinstance(limiter, ShardedLimiter):
        is_there = len(limiter._limiters) == 2 and not limiter.unavailable_tags
        return is_there and counting.maintainer.is_holder
    return limiter.is_available


async def test_a_process_counts_verifies_and_tells_of_budgets(node: Node) -> None:
    counting: Any = node.desk
    await node.serve(CALLER, tokens=7, cost=850)
    await until(lambda: bool(node.post.budget_events) and not node.post.waiting)

    async def verified() -> tuple[str, int, int]:
        report = await counting.do(CounterTask("t", CounterTaskKind.VERIFY))
        return report.problem, report.compared, report.differing

    assert await verified() == ("", 5, 0)
    [event] = node.post.budget_events
    assert (event.counter.subject_kind, event.counter.subject_id) == (
        SubjectKind.ORGANIZATION,
        ACME,
    )
    assert (event.percent, event.settled_nanousd) == (80, 850)
    reset = await counting.do(CounterTask("r", CounterTaskKind.RESET_CLOCK))
    assert reset.problem == ""


async def test_what_a_former_process_left_is_settled_whichever_server_has_it(node: Node) -> None:
    told = await node.begin(CALLER)
    lost = await node.begin(CALLER)
    given_back = await node.begin(CALLER)
    leftovers = [
        Leftover(told.event.request_id, 3, 30, UsageState.SETTLED, ACME),
        Leftover(lost.event.request_id, 0, 100, UsageState.ABANDONED, ACME),
        Leftover(given_back.event.request_id, 0, 0, UsageState.RELEASED, ACME),
        Leftover("unknown", 3, 30, UsageState.SETTLED, "org_2"),
        Leftover("unheard", 0, 0, UsageState.RELEASED, "org_2"),
    ]

    await settle_leftovers(node.limiter, leftovers)

    plan = node.snapshot.plan_for(CALLER, "", "", "", now_ms())
    found = {each.layer.name: each for each in await node.limiter.balances(plan)}
    assert found["organization_spend_per_month"].settled == 130
    assert found["user_spend_per_month"].held == 0
    # The third one never counted.
    assert found["global_requests_per_day"].settled == 2
    assert found["user_requests_per_day"].settled == 2


async def test_guards_are_where_the_shared_counters_are(node: Node) -> None:
    counting: Any = node.desk
    guards = Guards(counting.shared_target, lambda: True, timeout_seconds=1.0)
    check = Check(Guard("registrations", 1, 60_000), "somebody")

    assert (await guards.admit([check])).binding is None
    assert (await guards.admit([check])).binding == check

    await guards.aclose()
    desk = CounterDesk(counting.shared_target)
    assert await desk.client.exists(f"{desk.keyspace.prefix}g:registrations:somebody")
    kept = await desk.client.keys(Keyspace(bucket_tag(ACME)).epoch)
    assert len(kept) == isinstance(node.limiter, ShardedLimiter)
    await desk.aclose()
