"""Requests whose process died: free again after their lease, and one row each in the ledger."""

import msgspec
import pytest

from dataplane.domain.calls import UsageState
from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import Demand, SubjectKind, Unit, Window
from dataplane.limits.buckets import half_meta
from dataplane.limits.counters import Keyspace
from dataplane.maintenance.counter_table import text_of
from dataplane.maintenance.reaping import abandoned_event
from tests.maintenance.nodes import CALLER, Cluster, Node, now_ms, until, until_is


async def expire_leases(cluster: Cluster) -> None:
    """Let all leases run out, as after half a minute."""
    client, key = cluster.desk.client, cluster.keyspace.leases
    async for name, _ in client.zscan_iter(key):
        await client.zadd(key, {text_of(name): 1}, xx=True)


async def left_by_a_dead_node(cluster: Cluster, requests: int = 1) -> Node:
    node = await cluster.node(maintains=False)
    for _ in range(requests):
        await node.begin()
    await node.die()
    await expire_leases(cluster)
    return node


async def test_what_a_dead_process_held_is_charged_after_its_lease_and_one_row_says_so(
    cluster: Cluster,
) -> None:
    dead = await left_by_a_dead_node(cluster)
    [request_id] = dead.post.in_flight

    node = await cluster.node()
    await until(lambda: request_id in cluster.book.events)

    row = cluster.book.events[request_id]
    assert row.state is UsageState.ABANDONED
    assert (row.charged_nanousd, row.cost_nanousd, row.reserved_tokens) == (100, 100, 10)
    assert (row.user_id, row.node_id, row.usage.total_tokens) == ("u_1", dead.node_id, 0)
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (100, 0)
    assert await cluster.counter(Unit.REQUESTS, Window.DAY) == (1, 0)
    await until_is(lambda: cluster.desk.client.zcard(cluster.keyspace.reaped), 0)
    assert node.post.abandoned == [request_id]
    assert node.maintainer.reaped_total == 1


async def test_a_shared_half_without_a_row_is_given_back_once(cluster: Cluster) -> None:
    """Its process died between two halves, so nobody ever reports it: it was charged when it was reaped."""
    node = await cluster.node()
    for _ in range(3):
        await node.serve(cost=50)
    await cluster.settled()
    dead = await cluster.node(maintains=False)
    plan, demand = dead.snapshot.plan_for(CALLER, "", "", "", now_ms()), Demand(10, 100)
    await dead.limiter.reserve("orphan", plan, demand, half_meta(plan, demand))
    await dead.die()
    await expire_leases(cluster)
    await until(lambda: node.maintainer.reaped_total == 1)
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (250, 0)

    await cluster.rounds(8)
    # As five minutes later.
    await cluster.desk.client.zadd(cluster.keyspace.reaped, {"orphan": 1})
    await until_is(lambda: cluster.desk.client.zcard(cluster.keyspace.reaped), 0)

    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (150, 0)
    assert await cluster.counter(Unit.REQUESTS, Window.DAY) == (3, 0)


async def test_a_lease_that_runs_is_left_alone(cluster: Cluster) -> None:
    node, other = await cluster.node(), await cluster.node(maintains=False)
    await node.begin()
    await other.begin()

    await cluster.rounds(3)

    assert (node.maintainer.reaped_total, cluster.book.events) == (0, {})
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (0, 200)


async def test_a_reaper_that_dies_before_the_ledger_knows_loses_no_row(cluster: Cluster) -> None:
    dead = await left_by_a_dead_node(cluster, requests=3)
    first = await cluster.node()
    first.post.is_dying = True
    await until(lambda: first.maintainer.reaped_total == 3)
    await first.die()
    assert cluster.book.events == {}

    await cluster.node()
    await until(lambda: cluster.book.events.keys() == dead.post.in_flight)

    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (300, 0)
    await until_is(lambda: cluster.desk.client.zcard(cluster.keyspace.reaped), 0)


async def test_rows_wait_for_a_control_plane_that_is_away(cluster: Cluster) -> None:
    dead = await left_by_a_dead_node(cluster)
    cluster.book.is_away = True
    node = await cluster.node()
    await until(lambda: node.maintainer.reaped_total == 1)
    assert await cluster.desk.client.zcard(cluster.keyspace.reaped) == 1

    cluster.book.is_away = False
    await until(lambda: cluster.book.events.keys() == dead.post.in_flight)


async def test_a_true_figure_that_comes_late_corrects_counter_and_row(cluster: Cluster) -> None:
    slow = await cluster.node(maintains=False)
    request = await slow.begin()
    await expire_leases(cluster)
    await cluster.node()
    await until(lambda: request.event.request_id in cluster.book.events)

    request.end(tokens=4, cost=40)
    await cluster.settled()

    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (40, 0)
    assert await cluster.counter(Unit.TOKENS, Window.DAY) == (4, 0)
    assert cluster.book.sum_of(cluster.name(Unit.SPEND, Window.MONTH)) == 40
    assert cluster.book.events[request.event.request_id].state is UsageState.SETTLED


async def test_nothing_is_reaped_right_after_an_outage(cluster: Cluster) -> None:
    await left_by_a_dead_node(cluster)
    node = await cluster.node(quiet=3600.0)

    await cluster.rounds(3)

    assert node.maintainer.reaped_total == 0
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (0, 100)


async def test_what_no_meta_explains_is_charged_and_keeps_nothing_waiting(cluster: Cluster) -> None:
    odd = await cluster.node(maintains=False)
    plan = odd.snapshot.plan_for(CALLER, "", "", "", now_ms())
    await odd.limiter.reserve("of another version", plan, Demand(1, 7), b"\x93no object")
    await odd.die()
    dead = await left_by_a_dead_node(cluster)

    await cluster.node()

    await until(lambda: cluster.book.events.keys() == dead.post.in_flight)
    await until_is(lambda: cluster.desk.client.zcard(cluster.keyspace.reaped), 0)


@pytest.mark.parametrize("meta", ["", "no object", "[]", '{"reserved_nanousd": "much"}'])
def test_a_meta_that_is_no_record_makes_none(meta: str) -> None:
    assert abandoned_event("rid", meta, (), Keyspace()) is None


def test_an_abandoned_record_counts_in_the_periods_that_redis_chose() -> None:
    keyspace = Keyspace("t")
    keys = [
        keyspace.counter_key(each)
        for each in (
            CounterName(SubjectKind.USER, "u_1", Unit.REQUESTS, Window.DAY, "20261201"),
            CounterName(SubjectKind.ORGANIZATION, "o_1", Unit.SPEND, Window.MONTH, "202612"),
            CounterName(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.DAY, "20261130", 2),
            CounterName(SubjectKind.USER, "u_1", Unit.PARALLEL, Window.NONE, ""),
        )
    ]
    meta = msgspec.json.encode({"usage_day": "20261130", "user_id": "u_1", "of_a_newer": 1})

    event = abandoned_event("rid", meta.decode(), keys, keyspace)

    assert event is not None
    assert (event.usage_day, event.usage_month, event.service_day) == (
        "20261201",
        "202612",
        "20261130",
    )
    assert (event.request_id, event.user_id, event.charged_nanousd) == ("rid", "u_1", 0)
