"""Limits that are set in the middle of a period count the period, however busy their subject is."""

import pytest

from dataplane.domain.limiting import Denied, Unit, Window
from dataplane.domain.principals import SubjectLimits
from dataplane.domain.snapshot import Snapshot
from dataplane.limits.operations import NO_FENCE
from dataplane.maintenance.budget_news import BudgetNews, Capacities
from dataplane.maintenance.counter_table import CounterTable
from dataplane.maintenance.seeding import Seeder
from tests.maintenance.busy_table import BusyTable
from tests.maintenance.nodes import CALLER, Cluster, Node, entry, now_ms, snapshot_of, until

SPEND = (Unit.SPEND, Window.MONTH)
TOKENS = (Unit.TOKENS, Window.DAY)
REQUESTS = (Unit.REQUESTS, Window.DAY)
# What the period has used before the limit is set.
USED = 5_000


def without() -> Snapshot:
    """Return a configuration under which nothing is counted of the user but requests in flight."""
    return snapshot_of(CALLER, users=(entry(Unit.PARALLEL, Window.NONE, 100),))


def with_own(unit: Unit, window: Window, capacity: int) -> Snapshot:
    own = SubjectLimits(own=(entry(unit, window, capacity),))
    return snapshot_of(
        CALLER, users=without().service.default_user_limits, limits={"user:u_1": own}
    )


class Configurations:
    """A seeder that follows one configuration after the other."""

    def __init__(self, node: Node, table: CounterTable, cluster: Cluster) -> None:
        self._node = node
        self._seeder = Seeder(table, cluster.book, BudgetNews(cluster.keyspace, node.post))

    async def follow(self, snapshot: Snapshot) -> int:
        self._node.snapshots.append(snapshot)
        capacities = await Capacities.of(snapshot)
        return await self._seeder.follow(snapshot, NO_FENCE, capacities, now_ms())


@pytest.mark.parametrize(("unit", "window"), [SPEND, TOKENS, REQUESTS])
async def test_a_quota_that_is_set_on_a_busy_subject_refuses_at_once(
    cluster: Cluster, unit: Unit, window: Window
) -> None:
    cluster.snapshot = without()
    node = await cluster.node(maintains=False)

    async def go_on() -> None:
        await node.begin(tokens=10, cost=10)
        await node.serve(tokens=10, cost=10)
        await until(lambda: not node.limiter.queued)

    configurations = Configurations(node, BusyTable(cluster.desk, go_on), cluster)
    await configurations.follow(without())
    cluster.book.totals[cluster.name(unit, window)] = USED
    # Before the sums are there, the limit is in force, and counts from nothing.
    node.snapshots.append(with_own(unit, window, USED))
    await go_on()

    assert await configurations.follow(node.snapshot) == 1

    assert (await cluster.counter(unit, window))[0] >= USED
    with pytest.raises(Denied):
        await node.begin(tokens=10, cost=10)


async def test_what_a_new_budget_holds_is_not_taken_for_what_was_spent_before_it(
    cluster: Cluster,
) -> None:
    cluster.snapshot = without()
    node = await cluster.node(maintains=False)
    configurations = Configurations(node, CounterTable(cluster.desk), cluster)
    await configurations.follow(without())
    cluster.book.totals[cluster.name(*SPEND)] = USED
    node.snapshots.append(with_own(*SPEND, 10 * USED))
    await node.begin(cost=2 * USED)

    assert await configurations.follow(node.snapshot) == 1

    assert await cluster.counter(*SPEND) == (USED, 2 * USED)


async def test_a_budget_that_is_changed_is_not_raised_by_settlements_that_are_under_way(
    cluster: Cluster,
) -> None:
    cluster.snapshot = with_own(*SPEND, 10 * USED)
    node = await cluster.node(maintains=False)
    configurations = Configurations(node, CounterTable(cluster.desk), cluster)
    await configurations.follow(node.snapshot)
    request = await node.begin(cost=100)
    # The ledger has its record, while the settlement waits for Redis.
    cluster.book.totals[cluster.name(*SPEND)] = 90

    assert await configurations.follow(with_own(*SPEND, USED)) == 0

    request.reservation.settle(5, 90)
    await until(lambda: not node.limiter.queued)
    assert await cluster.counter(*SPEND) == (90, 0)


async def test_a_configuration_that_changes_nothing_raises_nothing(cluster: Cluster) -> None:
    node = await cluster.node(maintains=False)
    configurations = Configurations(node, CounterTable(cluster.desk), cluster)
    await configurations.follow(with_own(*SPEND, USED))
    await node.serve(cost=70)
    await cluster.settled()

    assert await configurations.follow(with_own(*SPEND, USED)) == 0
    assert await configurations.follow(with_own(*SPEND, 2 * USED)) == 0

    assert await cluster.counter(*SPEND) == (70, 0)
