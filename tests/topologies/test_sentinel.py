"""A primary that dies or steps down: its counters are rebuilt where they are now."""

import asyncio
import os
import signal

import pytest
from redis.exceptions import RedisError

from dataplane.domain.limiting import Denied, LimitsUnavailable, Unit, Window
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.topology import targets_at
from tests.maintenance.nodes import Cluster, Node, caller, cluster_on, entry, snapshot_of, until
from tests.topologies.machinery import Watched, client

MOST = 400
CALLER = caller()
SNAPSHOT = snapshot_of(
    CALLER,
    users=(
        entry(Unit.REQUESTS, Window.DAY, MOST),
        entry(Unit.TOKENS, Window.DAY),
        entry(Unit.SPEND, Window.MONTH),
    ),
)


class Traffic:
    """Callers that go on asking, whatever they are told."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.admitted = 0
        self.refused = 0
        self.is_full = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(4)]

    async def end(self) -> None:
        """Wait until the limit has refused somebody, and everybody else is through."""
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        while not self.is_full.is_set():
            try:
                request = await self.node.begin(CALLER)
            except LimitsUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
            except Denied:
                self.is_full.set()
            else:
                self.admitted += 1
                await asyncio.sleep(0.01)
                request.end(tokens=3, cost=30)


async def until_agreed(cluster: Cluster) -> None:
    """Wait until the counters say what the ledger says."""
    names = [
        cluster.name(Unit.REQUESTS, Window.DAY),
        cluster.name(Unit.TOKENS, Window.DAY),
        cluster.name(Unit.SPEND, Window.MONTH),
    ]
    await cluster.settled()
    async with asyncio.timeout(10.0):
        while True:
            found = [await cluster.balance(each) for each in names]
            if found == [(cluster.book.sum_of(each), 0) for each in names]:
                return
            await asyncio.sleep(0.02)


async def test_a_primary_that_is_killed_admits_nobody_twice_and_everything_goes_on(
    watched: Watched,
) -> None:
    target = targets_at(watched.url, RedisMode.SINGLE)("g")
    async with cluster_on(target, SNAPSHOT) as cluster:
        nodes = [await cluster.node(lease_ms=1_000), await cluster.node(lease_ms=1_000)]
        traffic = [Traffic(node) for node in nodes]
        await until(lambda: sum(each.admitted for each in traffic) > 60)
        primary = watched.primary()

        os.kill(primary.process.pid, signal.SIGKILL)

        await until(lambda: all(each.refused for each in traffic), 30)
        before = sum(each.admitted for each in traffic)
        await until(lambda: sum(each.admitted for each in traffic) > before + 20, 30)
        for each in traffic:
            await each.end()
        await cluster.settled()
        assert watched.primary() is not primary
        assert sum(node.maintainer.rebuilt_total for node in nodes) >= 1
        assert sum(each.admitted for each in traffic) == MOST
        assert cluster.book.sum_of(cluster.name(Unit.REQUESTS, Window.DAY)) == MOST
        await until_agreed(cluster)


async def test_a_primary_that_steps_down_is_left_for_the_one_that_takes_over(
    watched: Watched,
) -> None:
    target = targets_at(watched.url, RedisMode.SINGLE)("g")
    async with cluster_on(target, SNAPSHOT) as cluster:
        node = await cluster.node(lease_ms=1_000)
        await node.serve(CALLER)
        former = watched.primary()
        nowhere = targets_at(watched.url.replace("/counters?", "/others?"), RedisMode.SINGLE)("g")
        with pytest.raises(RedisError, match="no primary of this name"):
            await nowhere.address()

        watched.fail_over()

        await until(lambda: watched.primary() is not former)
        await until(lambda: node.limiter.is_available and node.maintainer.rebuilt_total > 0, 6)
        await node.serve(CALLER)
        await until_agreed(cluster)
        with client(watched.primary()) as primary:
            counted = primary.get(
                cluster.keyspace.counter_key(cluster.name(Unit.REQUESTS, Window.DAY))
            )
        assert counted == b"2"

        # Those that are connected go on without sentinels; nobody else finds the way.
        for each in watched.sentinels:
            each.process.kill()
            each.process.wait()
        with pytest.raises((RedisError, OSError)):
            await targets_at(watched.url, RedisMode.SINGLE)("g").address()
        checks = cluster.book.asked_for_sums
        await until(lambda: cluster.book.asked_for_sums > checks + 8)
        assert node.limiter.is_available
        await node.serve(CALLER)
