"""Counters and ledger agree once both are quiet, whatever happened to either."""

import asyncio

import msgspec
import pytest

from dataplane.domain.calls import UsageState
from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.principals import SubjectLimits
from dataplane.limits.operations import NO_FENCE
from dataplane.maintenance.budget_news import BudgetNews, Capacities
from dataplane.maintenance.counter_table import CounterTable
from dataplane.maintenance.drift import COVERED_MS
from dataplane.maintenance.reconciling import Reconciler
from dataplane.maintenance.registry import NodeRegistry
from dataplane.maintenance.terms import MaintenanceLease
from tests.maintenance.busy_table import BusyTable
from tests.maintenance.nodes import (
    CALLER,
    USER_LIMITS,
    Cluster,
    Node,
    entry,
    snapshot_of,
    until,
    until_is,
)

SPEND = (Unit.SPEND, Window.MONTH)
UNITS = [
    (*SPEND, 50),
    (Unit.TOKENS, Window.DAY, 5),
    (Unit.REQUESTS, Window.DAY, 1),
]


async def quiet_after_one_request(cluster: Cluster) -> Node:
    node = await cluster.node()
    await node.serve()
    await cluster.settled()
    # Past what a new holder looks at first.
    await cluster.rounds(2)
    return node


@pytest.mark.parametrize(("unit", "window", "true"), UNITS)
async def test_a_counter_behind_the_ledger_is_raised(
    cluster: Cluster, unit: Unit, window: Window, true: int
) -> None:
    node = await quiet_after_one_request(cluster)
    counter = cluster.name(unit, window)
    assert await cluster.balance(counter) == (true, 0)

    await cluster.set_counter(counter, 0)

    await until_is(lambda: cluster.balance(counter), (true, 0))
    await until(lambda: node.maintainer.drift_total >= 1)


@pytest.mark.parametrize(("unit", "window", "true"), UNITS)
async def test_a_counter_ahead_of_a_quiet_ledger_is_lowered(
    cluster: Cluster, unit: Unit, window: Window, true: int
) -> None:
    await quiet_after_one_request(cluster)
    counter = cluster.name(unit, window)

    await cluster.set_counter(counter, 1_000)

    await until_is(lambda: cluster.balance(counter), (true, 0))


async def test_nothing_is_corrected_while_requests_come_and_go(cluster: Cluster) -> None:
    nodes = [await cluster.node(), await cluster.node()]
    for _ in range(20):
        await asyncio.gather(*(node.serve() for node in nodes for _ in range(3)))
        await cluster.rounds(1)
    await cluster.settled()
    await cluster.rounds(4)

    assert [node.maintainer.drift_total for node in nodes] == [0, 0]
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (6_000, 0)


async def test_a_settlement_that_is_late_is_not_mistaken_for_drift(cluster: Cluster) -> None:
    node = await cluster.node()
    request = await node.begin(cost=100)
    # The ledger learns of it, while the settlement waits for Redis.
    ended = msgspec.structs.replace(request.event, charged_nanousd=90)
    cluster.book.take([ended])

    await cluster.rounds(1)
    request.reservation.settle(10, 90)
    await until(lambda: not node.limiter.queued)
    await cluster.rounds(3)

    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (90, 0)
    assert node.maintainer.drift_total == 0


def reconciler(
    cluster: Cluster, node: Node, table: CounterTable, covered_ms: int = COVERED_MS
) -> Reconciler:
    """Return one that goes round when the test wants it to."""
    registry = NodeRegistry(cluster.desk, node.node_id)
    news = BudgetNews(cluster.keyspace, node.post)
    return Reconciler(table, cluster.book, registry, news, covered_ms=covered_ms)


async def test_a_counter_behind_the_ledger_is_raised_while_requests_move_it(
    cluster: Cluster,
) -> None:
    node = await cluster.node(maintains=False)
    await node.serve(cost=50)
    await cluster.settled()
    names = [cluster.name(unit, window) for unit, window, _ in UNITS]
    for name in names:
        cluster.book.totals[name] += 5_000
    known = {name: cluster.book.sum_of(name) for name in names}

    async def go_on() -> None:
        await node.begin()
        await node.serve()
        await until(lambda: not node.limiter.queued)

    busy = reconciler(cluster, node, BusyTable(cluster.desk, go_on), covered_ms=0)
    node.post.holds_back = True
    capacities = await Capacities.of(cluster.snapshot)

    await busy.round(NO_FENCE, capacities)

    for name in names:
        assert (await cluster.balance(name))[0] >= known[name], name
    assert busy.drift_total >= len(names)


async def test_what_a_node_owes_that_lost_redis_alone_is_not_counted_twice(
    cluster: Cluster,
) -> None:
    node, cut = await cluster.node(maintains=False), await cluster.node(maintains=False)
    rounds = reconciler(cluster, node, CounterTable(cluster.desk))
    capacities = await Capacities.of(cluster.snapshot)
    owed = [await cut.begin(cost=1_000) for _ in range(5)]
    for request in owed:
        cut.post.record(
            msgspec.structs.replace(
                request.event, state=UsageState.SETTLED, cost_nanousd=900, charged_nanousd=900
            )
        )
    for _ in range(6):
        # Others move the counter meanwhile: it never stands still.
        await node.serve(cost=1)
        await cluster.settled()
        await rounds.round(NO_FENCE, capacities)

    for request in owed:
        request.reservation.settle(5, 900)
    await until(lambda: not cut.limiter.queued)

    assert await cluster.counter(*SPEND) == (4_506, 0)
    assert cluster.book.sum_of(cluster.name(*SPEND)) == 4_506


async def test_what_no_settlement_has_brought_for_long_is_raised_whatever_is_held(
    cluster: Cluster,
) -> None:
    node = await cluster.node(maintains=False)
    await node.begin(cost=1_000)
    await node.serve(cost=50)
    await cluster.settled()
    cluster.book.totals[cluster.name(*SPEND)] += 300
    capacities = await Capacities.of(cluster.snapshot)
    patient = reconciler(cluster, node, CounterTable(cluster.desk))
    for _ in range(3):
        await patient.round(NO_FENCE, capacities)
    assert await cluster.counter(*SPEND) == (50, 1_000)

    await reconciler(cluster, node, CounterTable(cluster.desk), 0).round(NO_FENCE, capacities)

    assert await cluster.counter(*SPEND) == (350, 1_000)


async def test_a_request_in_flight_keeps_what_it_took_however_long_it_lasts(
    cluster: Cluster,
) -> None:
    node = await cluster.node()
    await node.begin()

    await cluster.rounds(8)

    assert await cluster.counter(Unit.REQUESTS, Window.DAY) == (1, 0)
    assert node.maintainer.drift_total == 0


async def test_a_counter_is_not_lowered_while_a_node_has_something_to_report(
    cluster: Cluster,
) -> None:
    node, other = await cluster.node(), await cluster.node()
    other.post.holds_back = True
    await other.serve()
    await until(lambda: not other.limiter.queued)

    await cluster.rounds(8)
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (50, 0)

    other.post.holds_back = False
    await cluster.settled()
    assert node.maintainer.drift_total + other.maintainer.drift_total == 0


async def test_a_counter_is_not_lowered_while_a_node_is_unaccounted_for(cluster: Cluster) -> None:
    node, other = await cluster.node(seen_within_ms=100), await cluster.node()
    await until(lambda: node.maintainer.is_holder)
    other.post.holds_back = True
    await until_is(lambda: cluster.desk.client.hexists(cluster.keyspace.nodes, other.node_id), 1)
    await other.serve()
    await until(lambda: not other.limiter.queued)
    await other.die()

    await cluster.rounds(12)

    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (50, 0)


async def test_two_nodes_that_repair_at_once_set_and_do_not_add(cluster: Cluster) -> None:
    node = await cluster.node(maintains=False)
    for _ in range(30):
        await node.serve(cost=7)
    await cluster.settled()
    counter = cluster.name(Unit.SPEND, Window.MONTH)
    capacities = await Capacities.of(cluster.snapshot)
    lease = MaintenanceLease(cluster.desk, "node", 60_000)
    await lease.renew()
    assert lease.term is not None
    reconcilers = [
        Reconciler(
            CounterTable(cluster.desk),
            cluster.book,
            NodeRegistry(cluster.desk, "node"),
            BudgetNews(cluster.keyspace, node.post),
        )
        for _ in range(4)
    ]

    for _ in range(20):
        await cluster.set_counter(counter, 3)
        fence = lease.term.fence
        await asyncio.gather(*(each.round(fence, capacities) for each in reconcilers))
        assert await cluster.balance(counter) == (210, 0)


async def test_the_counters_of_limits_that_are_gone_and_of_foreign_keys_disturb_nothing(
    cluster: Cluster,
) -> None:
    await quiet_after_one_request(cluster)
    keyspace = cluster.keyspace
    day = CounterName(SubjectKind.USER, "u_1", Unit.REQUESTS, Window.DAY, "20201121")
    month = CounterName(SubjectKind.USER, "u_2", Unit.SPEND, Window.MONTH, "202011")
    await cluster.desk.client.set(keyspace.counter_key(day), "not a number")
    await cluster.desk.client.set(keyspace.counter_key(month), "no hash")
    await cluster.desk.client.set(f"{keyspace.prefix}p:of_a_newer_version:u_1:20201121", 7)
    counter = cluster.name(Unit.SPEND, Window.MONTH)

    await cluster.set_counter(counter, 0)

    await until_is(lambda: cluster.balance(counter), (50, 0))


async def test_a_control_plane_that_is_away_is_waited_for(cluster: Cluster) -> None:
    await quiet_after_one_request(cluster)
    cluster.book.is_away = True
    counter = cluster.name(Unit.SPEND, Window.MONTH)
    await cluster.set_counter(counter, 0)

    cluster.book.is_away = False

    await until_is(lambda: cluster.balance(counter), (50, 0))


async def test_a_budget_that_was_crossed_is_told_again_with_its_capacity(cluster: Cluster) -> None:
    budget = (*USER_LIMITS[:2], entry(Unit.SPEND, Window.MONTH, 60))
    cluster.snapshot = snapshot_of(CALLER, users=budget)
    node = await cluster.node(maintains=False)
    request = await node.begin(cost=55)
    request.end(cost=55)
    await cluster.settled()

    teller = await cluster.node()
    await until(lambda: bool(teller.post.budget_events))

    event = teller.post.budget_events[0]
    assert event.counter == cluster.name(Unit.SPEND, Window.MONTH)
    assert (event.percent, event.capacity_nanousd, event.settled_nanousd) == (80, 60, 55)


async def test_what_is_raised_over_a_threshold_is_told(cluster: Cluster) -> None:
    budget = (*USER_LIMITS[:2], entry(Unit.SPEND, Window.MONTH, 60))
    cluster.snapshot = snapshot_of(CALLER, users=budget)
    node = await cluster.node()
    request = await node.begin(cost=10)
    request.end(cost=10)
    await cluster.settled()

    cluster.book.take(
        [
            msgspec.structs.replace(
                request.event, request_id="degraded", charged_nanousd=50, reserved_tokens=0
            )
        ]
    )

    await until(lambda: {each.percent for each in node.post.budget_events} == {80, 100})


async def test_a_budget_that_is_set_in_the_middle_of_a_month_counts_the_month(
    cluster: Cluster,
) -> None:
    cluster.snapshot = snapshot_of(CALLER, users=USER_LIMITS[:1])
    node = await cluster.node(reconcile_least=3600.0, reconcile_most=3600.0)
    await node.serve(cost=70)
    await cluster.settled()
    await until(lambda: bool(cluster.book.listed))
    assert await cluster.counter(Unit.SPEND, Window.MONTH) == (0, 0)

    node.snapshots.append(snapshot_of(CALLER, users=USER_LIMITS))

    await until_is(lambda: cluster.counter(Unit.SPEND, Window.MONTH), (70, 0))
    assert node.maintainer.drift_total == 0
    ttl_ms = await cluster.desk.client.pttl(
        cluster.keyspace.counter_key(cluster.name(Unit.SPEND, Window.MONTH))
    )
    assert ttl_ms > 3 * 86_400_000


async def test_a_change_of_one_subject_asks_for_the_sums_of_that_subject(cluster: Cluster) -> None:
    node = await cluster.node(reconcile_least=3600.0, reconcile_most=3600.0)
    await node.serve(cost=70)
    await cluster.settled()
    await until(lambda: bool(cluster.book.listed))
    await cluster.desk.client.delete(
        cluster.keyspace.counter_key(cluster.name(Unit.SPEND, Window.MONTH))
    )
    cluster.book.listed.clear()
    changed = {"user:u_1": SubjectLimits((entry(Unit.SPEND, Window.MONTH, 5_000),))}
    node.snapshots.append(snapshot_of(CALLER, limits=changed))

    await until_is(lambda: cluster.counter(Unit.SPEND, Window.MONTH), (70, 0))
    assert {each.subject_id for _, subjects in cluster.book.listed for each in subjects} == {"u_1"}
