"""What an administrator is told when he asks whether counters and ledger agree."""

import asyncio
from typing import Any

import pytest

from dataplane.domain.counters import CounterDifference
from dataplane.domain.limiting import Unit, Window
from dataplane.limits.operations import NO_FENCE
from dataplane.limits.upkeep import OpenEpoch
from dataplane.maintenance.budget_news import Capacities
from dataplane.maintenance.counter_table import CounterTable
from dataplane.maintenance.registry import NodeRegistry
from dataplane.maintenance.verifying import Verification, Verifier
from tests.maintenance.nodes import CALLER, Cluster, Node, snapshot_of, until, until_is

SPEND = (Unit.SPEND, Window.MONTH)
REQUESTS = (Unit.REQUESTS, Window.DAY)
# The rounds that run all the time must not be quicker than the administrator.
ALONE: dict[str, Any] = {"reconcile_least": 3600.0, "reconcile_most": 3600.0}


async def holder(cluster: Cluster, **pace: Any) -> Node:
    node = await cluster.node(**ALONE, **pace)
    await node.serve()
    await cluster.settled()
    await until(lambda: node.maintainer.is_holder)
    await until(lambda: node.maintainer.rounds_total == 1)
    return node


async def test_counters_that_agree_are_counted(cluster: Cluster) -> None:
    node = await holder(cluster)
    await node.begin()

    assert await node.maintainer.verify(repairs=False) == Verification(4, 0, ())


async def test_nothing_differs_while_requests_come_and_go(cluster: Cluster) -> None:
    # Long enough for records to arrive on a machine that is busy; in production it is a second.
    node = await holder(cluster, between=0.3)
    other = await cluster.node(**ALONE)
    in_flight = [await each.begin() for each in (node, other)]

    async def traffic() -> None:
        while True:
            await asyncio.gather(node.serve(), other.serve())

    busy = asyncio.create_task(traffic())
    found = [await node.maintainer.verify(repairs=False) for _ in range(3)]
    busy.cancel()

    assert [each.differences for each in found] == [()] * 3
    assert len(in_flight) == 2


@pytest.mark.parametrize("settled", [1, 900])
async def test_what_differs_is_shown_and_left(cluster: Cluster, settled: int) -> None:
    node = await holder(cluster)
    counter = cluster.name(*SPEND)
    await cluster.set_counter(counter, settled)

    found = await node.maintainer.verify(repairs=False)

    difference = CounterDifference(counter, settled, ledger=50)
    assert found == Verification(4, 1, (difference,))
    assert await cluster.balance(counter) == (settled, 0)


@pytest.mark.parametrize("settled", [1, 900])
async def test_a_repair_sets_what_differs_in_either_direction(
    cluster: Cluster, settled: int
) -> None:
    node = await holder(cluster)
    await cluster.set_counter(cluster.name(*SPEND), settled)
    await cluster.set_counter(cluster.name(*REQUESTS), settled + 1)

    found = await node.maintainer.verify(repairs=True)

    assert (found.differing, {each.is_repaired for each in found.differences}) == (2, {True})
    assert await cluster.counter(*SPEND) == (50, 0)
    assert await cluster.counter(*REQUESTS) == (1, 0)
    assert (await node.maintainer.verify(repairs=True)).differing == 0


async def test_a_hold_that_no_request_has_is_found_and_taken_away(cluster: Cluster) -> None:
    node = await holder(cluster)
    await node.begin(cost=100)
    counter = cluster.name(*SPEND)
    await cluster.set_counter(counter, 50, 777)

    found = await node.maintainer.verify(repairs=True)

    assert found.differences == (CounterDifference(counter, 50, 50, 777, 100, is_repaired=True),)
    assert await cluster.balance(counter) == (50, 100)


async def test_a_request_of_another_counter_epoch_is_reserved_in_no_counter(
    cluster: Cluster,
) -> None:
    cluster.snapshot = snapshot_of(CALLER, service=())
    node = await cluster.node(maintains=False)
    await node.begin(tokens=10, cost=100)
    # As a rebuild leaves them that was not told of it.
    await cluster.desk.run(OpenEpoch("another"))
    for counter in (cluster.name(*REQUESTS), cluster.name(Unit.TOKENS, Window.DAY)):
        await cluster.set_counter(counter, 40)
        cluster.book.totals[counter] = 40
    await cluster.set_counter(cluster.name(*SPEND), 0)
    table, registry = CounterTable(cluster.desk), NodeRegistry(cluster.desk, node.node_id)
    verifier = Verifier(cluster.desk, table, cluster.book, registry, between_seconds=0.0)

    found = await verifier.verify(NO_FENCE, await Capacities.of(cluster.snapshot), repairs=True)

    assert found.differences == ()
    assert await cluster.counter(*REQUESTS) == (40, 0)


async def test_what_a_live_node_has_yet_to_report_is_not_repaired_away(cluster: Cluster) -> None:
    node = await holder(cluster)
    other = await cluster.node(**ALONE)
    other.post.holds_back = True
    await other.serve(cost=30)
    await until(lambda: not other.limiter.queued)
    await until_is(lambda: cluster.desk.client.hexists(cluster.keyspace.nodes, other.node_id), 1)
    presence = await cluster.desk.client.hget(cluster.keyspace.nodes, other.node_id)
    await until_is(lambda: _has_said_more(cluster, other, presence), True)

    found = await node.maintainer.verify(repairs=True)

    assert {each.is_repaired for each in found.differences} == {False}
    assert await cluster.counter(*SPEND) == (80, 0)


async def test_what_a_dead_node_never_reported_is_for_the_administrator_to_decide(
    cluster: Cluster,
) -> None:
    node = await cluster.node(seen_within_ms=200, **ALONE)
    other = await cluster.node(**ALONE)
    other.post.holds_back = True
    await other.serve(cost=30)
    await until(lambda: node.maintainer.is_holder and not other.limiter.queued)
    await other.die()
    await until_is(lambda: _present(cluster, node), {node.node_id})

    found = await node.maintainer.verify(repairs=True)

    assert {each.is_repaired for each in found.differences} == {True}
    assert await cluster.counter(*SPEND) == (0, 0)


async def _has_said_more(cluster: Cluster, node: Node, before: bytes | str | None) -> bool:
    said = await cluster.desk.client.hget(cluster.keyspace.nodes, node.node_id)
    return said != before and b"null" not in (said or b"null")


async def _present(cluster: Cluster, node: Node) -> set[str]:
    return set((await node.maintainer._registry.read()).seen_within(200))
