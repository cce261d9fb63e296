"""Counters on many servers and the ledger: each bucket is kept in agreement by itself."""

import asyncio
from typing import Any

import pytest

from dataplane.domain.calls import UsageState
from dataplane.domain.limiting import Demand, Unit
from dataplane.limits.buckets import SHARED_TAG, Halves, bucket_tag, half_meta
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk
from dataplane.limits.limiter import Limiter
from dataplane.limits.operations import Find, Outcome, Reap
from dataplane.maintenance.maintainer import NotMaintainingError
from dataplane.maintenance.shared_halves import ReapedHalf, SharedHalves
from tests.maintenance.nodes import Node, caller, now_ms, until, until_is
from tests.topologies.fleet import CALLERS, Fleet, is_serving, snapshot_for
from tests.topologies.machinery import PATIENCE_SECONDS
from tests.topologies.spread import ACME, BOND, CORP


async def serve_all(node: Node, count: int = 2) -> None:
    for principal in CALLERS.values():
        for _ in range(count):
            await node.serve(principal)


async def test_counters_of_a_new_fleet_are_opened_and_agree_with_the_ledger(fleet: Fleet) -> None:
    one, other = await fleet.serving(2)

    await serve_all(one)
    await serve_all(other)
    await fleet.until_agreed()

    holder = one if one.maintainer.is_holder else other
    found = await holder.maintainer.verify(repairs=False)
    assert (found.compared, found.differing) == (3 + 3 * 4, 0)
    with pytest.raises(NotMaintainingError):
        await (one if holder is other else other).maintainer.verify(repairs=False)


async def test_verifying_adds_up_all_buckets_and_sets_right_what_is_off(fleet: Fleet) -> None:
    # Nothing is set right but by the administrator.
    [node] = await fleet.serving()
    await serve_all(node)
    await fleet.until_agreed()
    counters = fleet.counters([BOND])
    shared, own = counters[2], counters[3]
    for counter in (shared, own):
        fleet.spoil(counter, 77_000)

    found = await node.maintainer.verify(repairs=True)

    assert found.differing == 2
    assert {each.counter for each in found.differences} == {shared, own}
    # What is ahead is lowered once the node has said, every few seconds, that it owes nothing older.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await node.maintainer.verify(repairs=True)).differing:
            await asyncio.sleep(0.05)
    await fleet.until_agreed()


async def test_a_limit_that_is_new_counts_what_was_used_before(fleet: Fleet) -> None:
    fleet.snapshot = snapshot_for(*CALLERS.values(), users=())
    [node] = await fleet.serving()
    await serve_all(node)
    await until(lambda: len(fleet.book.events) == 6)

    node.snapshots.append(snapshot_for(*CALLERS.values()))

    await fleet.until_agreed()
    assert fleet.read(fleet.counters([ACME])[4]) == (2, 0)


async def test_the_first_call_of_an_organization_waits_for_its_bucket(fleet: Fleet) -> None:
    newcomer = caller("u_org_9", "org_9")
    [node] = await fleet.serving()

    node.snapshots.append(snapshot_for(*CALLERS.values(), newcomer))
    await node.serve(newcomer)

    assert is_serving(node, ["org_9"])
    await serve_all(node)
    await fleet.until_agreed()


async def test_what_was_left_in_a_bucket_without_callers_can_be_settled(fleet: Fleet) -> None:
    [node] = await fleet.serving()

    limiter: Any = node.limiter
    await limiter.open(bucket_tag("org_9"))
    await until(lambda: is_serving(node, ["org_9"]))

    assert not await limiter.settle_again("nobody", 1, 1, organization_id="org_9")


async def test_counters_that_were_emptied_are_rebuilt_with_what_is_in_flight(
    fleet: Fleet,
) -> None:
    nodes = await fleet.serving(2)
    for node in nodes:
        await serve_all(node)
    nodes[0].post.holds_back = True
    in_flight = [
        await nodes[n % 2].begin(CALLERS[each]) for n, each in enumerate((ACME, BOND, CORP))
    ]
    await serve_all(nodes[0])

    rebuilt = sum(node.maintainer.rebuilt_total for node in nodes)
    for tag in (SHARED_TAG, *map(bucket_tag, CALLERS)):
        fleet.client_of(tag).flushall()
    await until(
        lambda: (
            sum(node.maintainer.rebuilt_total for node in nodes) >= rebuilt + 4
            and all(map(is_serving, nodes))
        )
    )

    async def held() -> list[int]:
        return [fleet.read(each)[1] for each in fleet.counters() if each.unit is Unit.SPEND]

    await until_is(held, [300, 100, 100, 100, 100, 100, 100], 20)
    assert fleet.strays() == set()
    nodes[0].post.holds_back = False
    for request in in_flight:
        request.end()

    await fleet.until_agreed()
    assert len(fleet.book.events) == 3 * 2 * 2 + 3 + 3 * 2


async def test_what_a_dead_process_held_is_one_row_and_charged_in_both_halves(
    fleet: Fleet,
) -> None:
    dead, other = await fleet.serving(2)
    for principal in CALLERS.values():
        await dead.begin(principal)
    requests = set(dead.post.in_flight)
    await fleet.kill(dead)
    for tag in (SHARED_TAG, *map(bucket_tag, CALLERS)):
        leases = Keyspace(tag).leases
        for name in requests & {n.decode() for n in fleet.client_of(tag).zrange(leases, 0, -1)}:  # type: ignore[union-attr] # a client that waits
            fleet.client_of(tag).zadd(leases, {name: 1})

    await until(lambda: fleet.book.events.keys() == requests, 20)

    assert {each.state for each in fleet.book.events.values()} == {UsageState.ABANDONED}
    assert {each.organization_id for each in fleet.book.events.values()} == set(CALLERS)
    await fleet.until_agreed()
    assert fleet.read(fleet.counters()[2]) == (300, 0)
    tags = [SHARED_TAG, *map(bucket_tag, CALLERS)]
    await until(lambda: not any(fleet.client_of(t).zcard(Keyspace(t).reaped) for t in tags))
    assert other.post.abandoned


async def test_a_half_whose_other_half_never_was_is_given_back(plain_fleet: Fleet) -> None:
    fleet = plain_fleet
    [node] = await fleet.serving()
    plan = node.snapshot.plan_for(CALLERS[ACME], "", "", "", now_ms())
    shared = Halves.of(plan).shared
    assert shared is not None
    demand, target = Demand(10, 100), fleet.target_of(SHARED_TAG)
    half = await Limiter.connect(target, timeout_seconds=1.0)
    await half.reserve("orphan", shared, demand, half_meta(plan, demand))
    await half.reserve("reported", shared, demand, half_meta(plan, demand))
    await half.aclose(1.0)
    node.tasks[1].cancel()
    await asyncio.wait(node.tasks[1:])
    known = await node.serve(CALLERS[ACME], 5, 50)
    await until(lambda: not node.post.waiting)
    desk = CounterDesk(target)
    found = dict(
        zip(("orphan", "reported"), await desk.run(Find("orphan"), Find("reported")), strict=True)
    )
    for name, each in found.items():
        [answer] = await desk.run(Reap(name, each[2], charged_nanousd=100))
        assert answer[0] == Outcome.OK
    halves = [ReapedHalf(name, each[2]) for name, each in found.items()]
    fleet.book.events["reported"] = known.event
    spend = fleet.counters()[2]
    assert fleet.read(spend) == (250, 0)

    young = await SharedHalves(desk, fleet.book).account_for(halves, now_ms())
    assert (young, fleet.read(spend)) == (["reported"], (250, 0))

    old = await SharedHalves(desk, fleet.book, orphaned_ms=0).account_for(halves, now_ms())
    assert (old, fleet.read(spend)) == (["reported"], (150, 0))
    assert fleet.read(fleet.counters()[0]) == (2, 0)
    await desk.aclose()


async def test_whoever_maintains_the_shared_counters_maintains_all(plain_fleet: Fleet) -> None:
    everything = plain_fleet.snapshot
    plain_fleet.snapshot = snapshot_for(CALLERS[ACME])
    first = await plain_fleet.node()
    await until(lambda: is_serving(first, [ACME]))
    plain_fleet.snapshot = everything
    second = await plain_fleet.node()
    maintainers: Any = second.maintainer
    await until(lambda: len(maintainers.tags) == 4)
    # It has said several times that it is there, and might have asked for the lease each time.
    nodes, seen = Keyspace(bucket_tag(BOND)).nodes, set[str]()
    server = plain_fleet.client_of(bucket_tag(BOND))
    await until(lambda: seen.add(str(server.hgetall(nodes))) or len(seen) > 5)  # type: ignore[func-returns-value] # it adds

    assert not any(each.is_holder for each in maintainers._maintainers.values())

    first.snapshots.append(everything)
    await until(lambda: is_serving(second))
    holder: Any = first.maintainer
    assert all(each.is_holder for each in holder._maintainers.values())


async def test_another_node_takes_over_every_bucket(plain_fleet: Fleet) -> None:
    fleet = plain_fleet
    nodes = await fleet.serving(2)
    await until(lambda: any(node.maintainer.is_holder for node in nodes))
    first, second = sorted(nodes, key=lambda node: not node.maintainer.is_holder)

    await fleet.kill(first)

    async def verified() -> int:
        try:
            return (await second.maintainer.verify(repairs=False)).differing
        except NotMaintainingError:
            return -1

    await until_is(verified, 0)
    await serve_all(second)
    await fleet.until_agreed()


async def test_the_clock_goes_back_on_every_server(plain_fleet: Fleet) -> None:
    fleet = plain_fleet
    [node] = await fleet.serving()
    ahead = now_ms() + 3_600_000
    tags = [SHARED_TAG, *map(bucket_tag, CALLERS)]
    for tag in tags:
        fleet.client_of(tag).set(Keyspace(tag).clock, ahead)
    await node.maintainer.reset_clock()

    clocks: list[Any] = [fleet.client_of(tag).get(Keyspace(tag).clock) for tag in tags]
    assert max(map(int, clocks)) < ahead
