"""A Cluster that loses a node, or gives a slot to another: only those whose counters were there notice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import MovedError, RedisError

from dataplane.domain.guards import Check, Guard
from dataplane.domain.limiting import Demand, LimitsUnavailable, Unit, Window
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.cluster import SlotTarget, _address, _SlotMap, slot_of
from dataplane.limits.desk import CounterDesk, open_counters
from dataplane.limits.guards import Guards
from dataplane.limits.limiter import Limiter
from dataplane.limits.redis_urls import RedisMode
from dataplane.limits.topology import targets_at
from tests.limits.plans import only
from tests.maintenance.nodes import Node, until
from tests.topologies.fleet import CALLERS, Fleet, is_serving
from tests.topologies.machinery import Cluster, clients_of
from tests.topologies.spread import ACME, BOND, CORP, Spread, plan_for


@asynccontextmanager
async def traffic_of_others(node: Node) -> AsyncIterator[list[int]]:
    """Let the other organizations call all the time; nobody may refuse them."""
    served: list[int] = []

    async def call() -> None:
        while True:
            for each in (BOND, CORP):
                await node.serve(CALLERS[each])
                served.append(1)
            await asyncio.sleep(0.01)

    calling = asyncio.create_task(call())
    try:
        yield served
        assert not calling.done(), "they were refused"
    finally:
        calling.cancel()
        await asyncio.wait({calling})
        if not calling.cancelled():
            calling.result()


async def until_refused(node: Node) -> None:
    """Return when the first organization is refused because its counters cannot be asked."""
    async with asyncio.timeout(10.0):
        while True:
            try:
                (await node.begin(CALLERS[ACME])).end()
            except LimitsUnavailable:
                return
            await asyncio.sleep(0.01)


async def until_served(node: Node) -> None:
    """Return when the first organization is served again, also where it was before."""
    async with asyncio.timeout(20.0):
        while True:
            try:
                await node.serve(CALLERS[ACME])
            except LimitsUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def test_a_node_that_is_gone_stops_its_organizations_only_and_comes_back_rebuilt(
    redis_cluster: Cluster, cluster_fleet: Fleet
) -> None:
    fleet = cluster_fleet
    [node] = await fleet.serving()
    targets = fleet.target_of(SHARED_TAG)
    assert isinstance(targets, SlotTarget)
    # The only node that the URL names: the others must be known from it by now.
    lost = redis_cluster.nodes[0]
    assert redis_cluster.node_of(bucket_tag(ACME)) is lost
    await node.serve(CALLERS[ACME])
    in_flight = await node.begin(CALLERS[ACME])
    rebuilt = node.maintainer.rebuilt_total

    async with traffic_of_others(node) as served:
        os.kill(lost.process.pid, signal.SIGKILL)
        lost.process.wait()
        await until_refused(node)
        before = len(served)
        in_flight.end()
        assert await targets.nodes._ask() is not None
        await until(lambda: len(served) > before + 50)
        assert not is_serving(node, [ACME])

        redis_cluster.revive(0)
        await until(redis_cluster.is_whole)
        await until_served(node)

    assert node.maintainer.rebuilt_total > rebuilt
    await fleet.until_agreed()


async def test_a_slot_that_moves_takes_its_organizations_along(
    redis_cluster: Cluster, cluster_fleet: Fleet
) -> None:
    fleet = cluster_fleet
    [node] = await fleet.serving()
    slot = slot_of(bucket_tag(ACME))
    source, target = redis_cluster.nodes[0], redis_cluster.nodes[2]
    await node.serve(CALLERS[ACME])
    in_flight = await node.begin(CALLERS[ACME])

    async with traffic_of_others(node):
        redis_cluster.begin_move(slot, source, target)
        await until_refused(node)
        redis_cluster.end_move(slot, source, target)
        await until_served(node)
        in_flight.end()
        await fleet.settled()

    await fleet.until_agreed()
    redis_cluster.begin_move(slot, target, source)
    redis_cluster.end_move(slot, target, source)
    await until_served(node)
    await fleet.until_agreed()


async def test_all_counters_under_one_tag_are_on_the_shard_that_serves_it(
    redis_cluster: Cluster,
) -> None:
    """`single` on a Cluster; the URL names nodes that do not serve the tag, and one that is gone."""
    others = [each for each in redis_cluster.nodes if each is not redis_cluster.node_of(SHARED_TAG)]
    hosts = ",".join(["127.0.0.1:1", *(f"127.0.0.1:{each.port}" for each in others)])
    url = redis_cluster.url.rpartition("@")[0]
    target = targets_at(f"{url}@{hosts}/0", RedisMode.SINGLE)(SHARED_TAG)
    with clients_of(redis_cluster) as clients:
        for each in clients.values():
            each.flushall()
    await open_counters(target)
    limiter = await Limiter.connect(target, timeout_seconds=1.0)
    guards = Guards(target, lambda: True, timeout_seconds=1.0)
    try:
        plan = only(Unit.REQUESTS, Window.TOTAL, 5)
        (await limiter.reserve("a", plan, Demand(1, 1), b"")).settle(1, 1)
        [balance] = await limiter.balances(plan)
        assert balance.settled == 1
        check = Check(Guard("registrations", 1, 60_000), "somebody")
        assert (await guards.admit([check])).binding is None
        assert (await guards.admit([check])).binding == check
    finally:
        await limiter.aclose(1.0)
        await guards.aclose()


async def test_connections_of_a_bucket_are_at_its_node(
    redis_cluster: Cluster, on_cluster: Spread
) -> None:
    for organization_id in (ACME, BOND, CORP):
        await on_cluster.reserve("a", plan_for(organization_id))

    for organization_id in (ACME, BOND, CORP):
        address = await on_cluster.target_of(bucket_tag(organization_id)).address()
        port = redis_cluster.node_of(bucket_tag(organization_id)).port
        assert address == ("127.0.0.1", port)


async def test_a_connection_to_a_node_that_does_not_serve_the_counters_is_closed(
    redis_cluster: Cluster,
) -> None:
    other = next(n for n in redis_cluster.nodes if n is not redis_cluster.node_of(SHARED_TAG))
    desk = CounterDesk(other.url)

    with pytest.raises(MovedError):
        await desk.epoch()

    [connection] = desk.client.connection_pool._available_connections
    assert not connection.is_connected
    await desk.aclose()


def test_a_slot_that_nobody_serves_has_no_address() -> None:
    slots = _SlotMap((10, 30), (19, 39), (("a", 1), ("b", 2)))

    assert [slots.address_of(slot) for slot in (10, 19, 30, 39)] == [("a", 1)] * 2 + [("b", 2)] * 2
    for slot in (0, 20, 29, 40):
        with pytest.raises(RedisError, match="no node serves"):
            slots.address_of(slot)


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_that_was_never_given_a_name_is_where_it_was_asked(host: bytes | None) -> None:
    assert _address([host, 7000, b"id"], "asked") == ("asked", 7000)
    assert _address([b"named", 7000, b"id"], "asked") == ("named", 7000)
