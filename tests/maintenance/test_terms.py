"""One node at a time maintains the counters, and one that lost the lease can change nothing."""

import asyncio

import pytest

from dataplane.domain.counters import Reading
from dataplane.domain.limiting import Unit, Window
from dataplane.limits.operations import Outcome
from dataplane.limits.upkeep import Maintain
from dataplane.maintenance.counter_table import CounterTable, correction
from dataplane.maintenance.maintainer import NotMaintainingError
from dataplane.maintenance.terms import FencedError, MaintenanceLease
from tests.maintenance.nodes import Cluster, Node, until, until_is


async def take_over(cluster: Cluster, node: Node) -> None:
    """Let another node have the lease, as if this one had been asleep."""
    node.maintainer._lease.renew = asyncio.Event().wait  # type: ignore[method-assign, assignment]
    await cluster.desk.client.delete(cluster.keyspace.maintenance)
    [answer] = await cluster.desk.run(Maintain("another", 60_000))
    assert answer[0] == Outcome.OK


async def test_one_of_two_nodes_maintains_and_the_other_takes_over_when_it_dies(
    cluster: Cluster,
) -> None:
    first = await cluster.node()
    await until(lambda: first.maintainer.is_holder)
    second = await cluster.node()
    await cluster.set_counter(cluster.name(Unit.SPEND, Window.MONTH), 0, 0)
    await cluster.rounds(5)
    assert not second.maintainer.is_holder

    await first.die()
    assert not second.maintainer.is_holder

    await until(lambda: second.maintainer.is_holder)


async def test_a_node_that_stops_gives_the_lease_up_at_once(cluster: Cluster) -> None:
    first = await cluster.node(lease_ms=60_000)
    await until(lambda: first.maintainer.is_holder)
    second = await cluster.node(lease_ms=60_000)

    first.tasks[-1].cancel()

    await until(lambda: second.maintainer.is_holder)


async def test_a_holder_that_cannot_renew_its_lease_stops_by_its_own_clock(
    cluster: Cluster,
) -> None:
    lease = MaintenanceLease(cluster.desk, "node", lease_ms=50)
    await lease.renew()
    term = lease.term
    assert term is not None

    async with asyncio.timeout(5):
        await term.ended.wait()

    assert lease.term is None


async def test_work_under_way_ends_with_the_term(cluster: Cluster) -> None:
    node = await cluster.node()
    await until(lambda: node.maintainer.is_holder)
    request = await node.serve()
    await cluster.settled()
    counter = cluster.name(Unit.SPEND, Window.MONTH)
    await take_over(cluster, node)

    await cluster.set_counter(counter, 1, 0)

    await until(lambda: not node.maintainer.is_holder)
    assert await cluster.balance(counter) == (1, 0)
    assert request.event.request_id in cluster.book.events


async def test_redis_refuses_what_a_former_holder_sets(cluster: Cluster) -> None:
    lease = MaintenanceLease(cluster.desk, "node", lease_ms=60_000)
    await lease.renew()
    assert lease.term is not None
    fence = lease.term.fence
    await cluster.desk.client.delete(cluster.keyspace.maintenance)
    await cluster.desk.run(Maintain("another", 60_000))
    table = CounterTable(cluster.desk)
    place = table.place(cluster.name(Unit.SPEND, Window.MONTH))

    with pytest.raises(FencedError):
        await table.correct([correction(place, Reading(), 5, 0, fence)])

    assert await cluster.balance(place.counter) == (0, 0)


async def test_only_the_holder_verifies_and_resets_the_clock(cluster: Cluster) -> None:
    holder = await cluster.node()
    await until(lambda: holder.maintainer.is_holder)
    other = await cluster.node()

    with pytest.raises(NotMaintainingError):
        await other.maintainer.verify(repairs=True)
    with pytest.raises(NotMaintainingError):
        await other.maintainer.reset_clock()


async def test_the_clock_of_the_limiter_can_be_set_back(cluster: Cluster) -> None:
    node = await cluster.node()
    await until(lambda: node.maintainer.is_holder)
    await cluster.desk.client.set(cluster.keyspace.clock, 99_999_999_999_999)

    await node.maintainer.reset_clock()

    assert int(await cluster.desk.client.get(cluster.keyspace.clock) or 0) < 99_999_999_999_999


async def test_a_node_without_a_configuration_leaves_the_lease_to_others(
    cluster: Cluster,
) -> None:
    node = await cluster.node(maintains=False)
    node.maintainer._current_snapshot = lambda: None
    node.tasks.append(asyncio.create_task(node.maintainer.run()))

    await until_is(lambda: cluster.desk.client.hexists(cluster.keyspace.nodes, node.node_id), 1)

    assert await cluster.desk.client.exists(cluster.keyspace.maintenance) == 0


async def test_a_node_that_has_reported_everything_leaves_the_list_when_it_stops(
    cluster: Cluster,
) -> None:
    node = await cluster.node()
    request = await node.begin()
    await until_is(lambda: cluster.desk.client.hexists(cluster.keyspace.nodes, node.node_id), 1)
    node.tasks[-1].cancel()
    await asyncio.wait(node.tasks[-1:])

    await node.maintainer.leave()
    assert await cluster.desk.client.hexists(cluster.keyspace.nodes, node.node_id)

    request.end()
    await cluster.settled()
    await node.maintainer.leave()
    assert not await cluster.desk.client.hexists(cluster.keyspace.nodes, node.node_id)
