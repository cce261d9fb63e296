"""Counters that no layer moves: they exist after a rebuild, fall behind, and say nothing."""

from dataclasses import replace
from typing import Any

from msgspec.structs import replace as changed

from dataplane.domain.counters import CounterName
from dataplane.domain.entitlements import address_digest
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.principals import LimitEntry, SubjectLimits, Tier
from dataplane.maintenance.budget_news import Capacities
from tests.maintenance.nodes import Cluster, caller, entry, snapshot_of, until, until_is

SPEND = (Unit.SPEND, Window.MONTH)
ALONE: dict[str, Any] = {"reconcile_least": 3600.0, "reconcile_most": 3600.0}
FREE_OF_IT = SubjectLimits((LimitEntry("spend", "month", 0, is_unlimited=True),))
BOB = caller("u_2")


async def test_a_counter_that_no_layer_moves_is_neither_shown_nor_set(cluster: Cluster) -> None:
    node = await cluster.node(**ALONE)
    await node.serve()
    await cluster.settled()
    await until(lambda: node.maintainer.is_holder)
    node.snapshots.append(snapshot_of(caller(), BOB, limits={"user:u_2": FREE_OF_IT}))
    # What follows must not be taken for what was there before the configuration.
    await until(lambda: not node.maintainer._seeder.is_due(node.snapshot))
    # As a rebuild leaves it, which asks for all sums of a kind.
    await cluster.set_counter(cluster.name(*SPEND, "u_2"), 1)
    await node.serve(BOB)
    await cluster.settled()

    found = await node.maintainer.verify(repairs=True)

    assert found.differences == ()
    assert await cluster.counter(*SPEND, "u_2") == (1, 0)
    # When a layer counts it again it is what the ledger says.
    node.snapshots.append(snapshot_of(caller(), BOB))
    await until_is(lambda: cluster.counter(*SPEND, "u_2"), (50, 0))


async def test_whether_a_counter_is_moved_is_known_of_every_kind_of_subject() -> None:
    digest = address_digest("203.0.113.7")
    of_tier = changed(caller("u_3"), principal_id="k_tier", tier="pro")
    one = (entry(*SPEND),)
    limits = {
        "endpoint:chat": SubjectLimits(one),
        "model:gpt-4.1": SubjectLimits(one),
        "ip:203.0.113.7": SubjectLimits(one),
        "organization:o_1": SubjectLimits(one),
        "key:k_u_1": SubjectLimits(one),
    }
    tiers = {"pro": Tier("pro", ip_limits=(entry(Unit.SPEND, Window.DAY),), user_limits=one)}
    snapshot = snapshot_of(
        caller(), caller("u_3"), of_tier, users=(), limits=limits, service=(), tiers=tiers
    )
    capacities = await Capacities.of(
        replace(
            snapshot, limited_endpoints=frozenset({"chat"}), limited_models=frozenset({"gpt-4.1"})
        )
    )

    def moved(kind: SubjectKind, subject_id: str, window: Window = Window.MONTH) -> bool:
        return capacities.is_counted(CounterName(kind, subject_id, Unit.SPEND, window, "x"), 0)

    assert moved(SubjectKind.ENDPOINT, "chat")
    assert not moved(SubjectKind.ENDPOINT, "messages")
    assert moved(SubjectKind.MODEL, "gpt-4.1")
    assert moved(SubjectKind.ORGANIZATION, "o_1")
    assert not moved(SubjectKind.ORGANIZATION, "o_1", Window.DAY)
    assert moved(SubjectKind.KEY, "k_u_1")
    assert not moved(SubjectKind.KEY, "gone")
    # One of the user's keys has a tier with a budget of users, the other has none.
    assert moved(SubjectKind.USER, "u_3")
    assert not moved(SubjectKind.USER, "u_1")
    assert not moved(SubjectKind.GLOBAL, "")
    assert moved(SubjectKind.IP, digest)
    assert not moved(SubjectKind.IP, address_digest("203.0.113.8"))
    assert moved(SubjectKind.IP, f"pro-{address_digest('203.0.113.8')}", Window.DAY)
    assert not moved(SubjectKind.IP, f"free-{digest}", Window.DAY)
