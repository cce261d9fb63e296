"""A node with nothing to do does next to nothing, and is there at once when there is something."""

import asyncio
from dataclasses import asdict
from typing import Any, Final

import pytest

from dataplane import embedded_redis
from dataplane.domain.limiting import Unit, Window
from dataplane.domain.principals import SubjectLimits
from dataplane.limits.limiter import Limiter
from dataplane.maintenance import maintainer
from dataplane.maintenance.maintainer import Pace
from tests.maintenance.nodes import (
    PATIENCE_SECONDS,
    Cluster,
    caller,
    cluster_on,
    entry,
    snapshot_of,
    until,
    until_is,
)

SPEND = (Unit.SPEND, Window.MONTH)
# What is not told of is not found within the time of a test.
BLIND: Final[dict[str, Any]] = {"look": 3600.0, "reap": 3600.0}
# In a second: a check-up of the limiter, and a fifth of each round.
SECONDS: Final = 3
MAX_LOOKS: Final = 15
MAX_COMMANDS: Final = 20


async def commands(cluster: Cluster) -> dict[str, int]:
    """Return how often the server was asked what, within scripts too, but for INFO: that asks."""
    stats: dict[str, Any] = await cluster.desk.client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    return {name: count for name, count in calls.items() if name != "info"}


async def until_checked_up(cluster: Cluster, times: int) -> dict[str, int]:
    """Wait for check-ups of the limiter, of which there is one a second; return the commands."""
    wanted = (await commands(cluster))["get"] + times
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (now := await commands(cluster))["get"] < wanted:
            await asyncio.sleep(0.05)
    return now


async def test_an_idle_second_costs_a_few_looks_and_commands(
    own_redis: embedded_redis.RunningRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def is_cold(limiter: Limiter) -> bool:
        nonlocal looks
        looks += 1
        return limiter._batcher.availability.is_cold

    monkeypatch.setattr(Limiter, "is_cold", property(is_cold))
    async with cluster_on(own_redis.url) as cluster:
        node = await cluster.node(**asdict(Pace()))
        await until(lambda: node.maintainer.rounds_total > 0)
        before, looks = await commands(cluster), 0

        after = await until_checked_up(cluster, SECONDS)

        assert 0 < looks <= SECONDS * MAX_LOOKS
        asked = sum(after.values()) - sum(before.values())
        assert SECONDS <= asked <= SECONDS * MAX_COMMANDS


async def test_lost_counters_are_rebuilt_without_being_looked_for(own_cluster: Cluster) -> None:
    cluster = own_cluster
    nodes = [await cluster.node(**BLIND), await cluster.node(**BLIND)]
    await nodes[0].serve()
    await cluster.settled()
    await cluster.rounds(1)

    # The lease stays: no other term begins, which would look at everything.
    await cluster.desk.client.delete(cluster.keyspace.epoch)

    await until(lambda: any(node.maintainer.rebuilt_total for node in nodes))
    await until(lambda: all(node.limiter.is_available for node in nodes))
    await until(lambda: not any(node.post.is_paused for node in nodes))
    assert [node.post.pauses for node in nodes] == [1, 1]
    assert await cluster.counter(*SPEND) == (50, 0)


async def test_a_configuration_is_followed_when_it_is_told_of(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Then nothing more is due when the first round is over.
    monkeypatch.setattr(maintainer, "_REST_SECONDS", 0.0)
    node = await cluster.node(**BLIND, reconcile_least=3600.0, reconcile_most=3600.0)
    await until(lambda: node.maintainer.rounds_total > 0)
    cluster.book.totals[cluster.name(*SPEND, "u_2")] = 70
    limits = {"user:u_2": SubjectLimits((entry(*SPEND),))}

    node.snapshots.append(snapshot_of(caller(), caller("u_2"), limits=limits))
    node.maintainer.wake()

    await until_is(lambda: cluster.counter(*SPEND, "u_2"), (70, 0))


async def test_after_an_outage_everything_is_compared_without_being_looked_for(
    cluster: Cluster,
) -> None:
    node = await cluster.node(**BLIND, reconcile_least=3600.0, reconcile_most=3600.0, soon=0.02)
    await node.serve()
    await cluster.settled()
    await until(lambda: node.maintainer.rounds_total > 0)
    rounds = node.maintainer.rounds_total

    node.limiter._batcher.availability.open()
    cluster.book.totals[cluster.name(*SPEND)] = 90

    await until(lambda: node.maintainer.rounds_total >= rounds + 2)
    assert await cluster.counter(*SPEND) == (90, 0)
