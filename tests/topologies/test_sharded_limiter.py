"""A limiter in two halves: what the parts of `test_limiter` say of one holds of both together."""

import asyncio
from dataclasses import replace

import pytest

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import (
    Denied,
    Layer,
    LimitsUnavailable,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.limits.buckets import SHARED_TAG, bucket_tag
from dataplane.limits.counters import Keyspace
from dataplane.limits.sharded import ShardedLimiter
from tests.limits.probe import until
from tests.topologies.spread import ACME, BOND, CORP, Spread, own_layers, plan_for

PLAN = plan_for(ACME)
SOFT = Layer(SubjectKind.GLOBAL, "", Unit.SPEND, Window.TOTAL, 1_000_000, is_hard=False)
NOTHING = dict.fromkeys((layer.name for layer in PLAN.layers), (0, 0))
# While one request of 10 tokens and 100 nano-USD is in flight.
IN_FLIGHT = NOTHING | {
    "global_requests_rate": (1, 0),
    "global_requests_per_minute": (1, 0),
    "global_tokens_per_minute": (10, 0),
    "global_spend_total": (0, 100),
    "organization_spend_total": (0, 100),
    "user_requests_rate": (1, 0),
    "user_requests_total": (1, 0),
    "user_tokens_total": (10, 0),
    "key_requests_per_minute": (1, 0),
    "key_tokens_per_minute": (10, 0),
    "key_parallel": (1, 0),
    "ip_requests_total": (1, 0),
    "endpoint_tokens_total": (10, 0),
    "model_parallel": (1, 0),
}
# After it took 4 tokens and 30 nano-USD.
SETTLED = IN_FLIGHT | {
    "global_tokens_per_minute": (4, 0),
    "global_spend_total": (30, 0),
    "organization_spend_total": (30, 0),
    "user_tokens_total": (4, 0),
    "key_tokens_per_minute": (4, 0),
    "key_parallel": (0, 0),
    "endpoint_tokens_total": (4, 0),
    "model_parallel": (0, 0),
}


async def test_a_request_holds_its_demand_in_both_halves_until_it_is_settled(
    spread: Spread,
) -> None:
    reservation = await spread.reserve("a", PLAN)

    assert [each.layer for each in reservation.standings] == list(PLAN.layers)
    remaining = {each.layer.name: each.remaining for each in reservation.standings}
    assert remaining == {
        each.name: (each.capacity - sum(IN_FLIGHT[each.name])) for each in PLAN.layers
    }
    assert await spread.balances(PLAN) == IN_FLIGHT
    assert spread.leases(SHARED_TAG) == spread.leases(bucket_tag(ACME)) == {"a"}

    reservation.settle(4, 30)

    assert await spread.balances(PLAN) == SETTLED
    assert spread.leases(SHARED_TAG) == spread.leases(bucket_tag(ACME)) == set()


async def test_a_released_request_has_taken_nothing_but_its_place_in_minutes_and_rates(
    spread: Spread,
) -> None:
    reservation = await spread.reserve("a", PLAN)

    reservation.release()

    kept = {
        name: (1, 0) for name in NOTHING if name.endswith(("requests_rate", "requests_per_minute"))
    }
    assert await spread.balances(PLAN) == NOTHING | kept


@pytest.mark.parametrize(
    "place", range(len(own_layers(ACME))), ids=lambda n: own_layers(ACME)[n].name
)
async def test_a_denial_of_the_organization_changes_nothing_of_either_half(
    on_one_server: Spread, place: int
) -> None:
    spread, layer = on_one_server, own_layers(ACME)[place]
    tight = plan_for(ACME, replace(layer, capacity=1, every_ms=layer.every_ms))
    first = await spread.reserve("first", tight, tokens=1, cost=1)
    before = await spread.balances(tight)

    for _ in range(3):
        with pytest.raises(Denied) as denied:
            await spread.reserve("second", tight, tokens=1, cost=1)

    denial = denied.value.denial
    assert (denial.binding.layer.name, denial.is_never) == (layer.name, False)
    assert [each.layer for each in denial.standings] == list(tight.layers)
    assert await spread.balances(tight) == before
    assert spread.leases(SHARED_TAG) == {"first"}
    first.settle(1, 1)


async def test_a_denial_shows_shared_layers_as_they_stood_before(spread: Spread) -> None:
    with pytest.raises(Denied) as denied:
        await spread.reserve("a", PLAN, tokens=20, cost=1_001)

    remaining = {each.layer: each.remaining for each in denied.value.denial.standings}
    assert remaining == {layer: layer.capacity for layer in PLAN.layers}
    assert denied.value.denial.is_never


async def test_a_request_that_was_denied_may_be_asked_for_again_with_less(spread: Spread) -> None:
    with pytest.raises(Denied):
        await spread.reserve("a", PLAN, cost=1_001)

    reservation = await spread.reserve("a", PLAN)

    assert await spread.balances(PLAN) == IN_FLIGHT
    reservation.settle(4, 30)
    assert await spread.balances(PLAN) == SETTLED


async def test_a_denial_of_a_shared_layer_never_asks_the_organization(spread: Spread) -> None:
    tight = plan_for(ACME, Layer(SubjectKind.IP, "1a2b", Unit.REQUESTS, Window.TOTAL, 1))
    await spread.reserve("first", tight)
    before = await spread.balances(tight)

    with pytest.raises(Denied) as denied:
        await spread.reserve("second", tight)

    assert denied.value.denial.binding.layer.name == "ip_requests_total"
    assert await spread.balances(tight) == before
    assert spread.leases(bucket_tag(ACME)) == {"first"}


async def test_an_organization_that_cannot_be_asked_takes_nothing_of_what_is_shared(
    spread: Spread,
) -> None:
    # A bucket whose counters nobody has opened.
    plan = plan_for("org_9")

    for _ in range(2):
        with pytest.raises(LimitsUnavailable):
            await spread.reserve("a", plan)

    assert spread.leases(SHARED_TAG) == set()
    assert await spread.balances(plan_of(plan_for(ACME, own=False).layers)) == {
        layer.name: (0, 0) for layer in plan.layers[:4] + plan.layers[-3:]
    }
    assert bucket_tag("org_9") in spread.limiter.unavailable_tags
    assert spread.limiter.is_available


async def test_counters_that_are_lost_between_the_halves_undo_the_shared_one(
    spread: Spread,
) -> None:
    # The limiter has not noticed yet.
    spread.client_of(bucket_tag(ACME)).delete(Keyspace(bucket_tag(ACME)).epoch)

    with pytest.raises(LimitsUnavailable):
        await spread.reserve("a", PLAN)

    shared = plan_for(BOND, own=False)
    assert await spread.balances(shared) == {layer.name: (0, 0) for layer in shared.layers}
    assert spread.leases(SHARED_TAG) == set()


async def test_a_caller_who_leaves_between_the_halves_has_taken_nothing(
    on_one_server: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = on_one_server
    own = await spread.limiter.open(bucket_tag(ACME))
    has_begun = asyncio.Event()

    async def never(*_: object) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(own, "reserve", never)
    caller = asyncio.create_task(spread.reserve("a", PLAN))
    await has_begun.wait()
    assert spread.leases(SHARED_TAG) == {"a"}

    caller.cancel()
    await asyncio.wait({caller})

    assert await spread.balances(PLAN) == NOTHING
    assert spread.leases(SHARED_TAG) == set()


async def test_organizations_share_what_is_shared_and_nothing_else(spread: Spread) -> None:
    address = Layer(SubjectKind.IP, "1a2b", Unit.REQUESTS, Window.TOTAL, 30)
    plans = [plan_for(each, address, shared=()) for each in (ACME, BOND, CORP)]

    outcomes = await asyncio.gather(
        *(spread.reserve(f"r{n}", plans[n % 3], tokens=1, cost=1) for n in range(45)),
        return_exceptions=True,
    )

    denied = [each for each in outcomes if isinstance(each, BaseException)]
    assert {type(each) for each in denied} == {Denied}
    assert len(outcomes) - len(denied) == 30
    balances = [await spread.balances(plan) for plan in plans]
    assert {each["ip_requests_total"] for each in balances} == {(30, 0)}
    assert sum(each["user_requests_total"][0] for each in balances) == 30
    tags = {bucket_tag(each) for each in (ACME, BOND, CORP)}
    assert len(set().union(*map(spread.leases, tags))) == 30


async def test_one_organization_at_its_limit_leaves_the_others_all_of_what_is_shared(
    spread: Spread,
) -> None:
    """However often it asks: neither a minute nor a rate of the whole service is used up."""
    few = (
        Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.RATE, 20, every_ms=3_600_000),
        Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.MINUTE, 20),
    )
    full = Layer(SubjectKind.USER, f"u_{ACME}", Unit.TOKENS, Window.TOTAL, 5)
    for _ in range(60):
        with pytest.raises(Denied):
            await spread.reserve("a", plan_for(ACME, full, *few))

    for number in range(20):
        await spread.reserve(f"b{number}", plan_for(BOND, *few, shared=()), tokens=1, cost=1)
    with pytest.raises(Denied) as denied:
        await spread.reserve("b", plan_for(BOND, *few, shared=()), tokens=1, cost=1)
    assert denied.value.denial.binding.layer.name == "global_requests_rate"


async def test_soft_budgets_of_both_halves_hold_more_while_they_have_room(spread: Spread) -> None:
    own = Layer(SubjectKind.ORGANIZATION, ACME, Unit.SPEND, Window.TOTAL, 1_000, is_hard=False)
    plan = plan_for(ACME, SOFT, own)
    reservation = await spread.reserve("a", plan, cost=900, expected_nanousd=100)

    assert await reservation.extend(400)
    held = await spread.balances(plan)
    assert (held["global_spend_total"], held["organization_spend_total"]) == ((0, 400), (0, 400))

    assert not await reservation.extend(1_001)
    assert (await spread.balances(plan))["organization_spend_total"] == (0, 400)
    reservation.settle(4, 500)
    spent = await spread.balances(plan)
    assert (spent["global_spend_total"], spent["organization_spend_total"]) == ((500, 0), (500, 0))


async def test_plans_of_one_half_are_asked_of_one_server(spread: Spread) -> None:
    own, shared = plan_for(BOND, shared=()), plan_for(BOND, own=False)

    (await spread.reserve("own", own)).settle(1, 1)
    await spread.reserve("shared", shared)
    await spread.reserve("none", plan_of([], organization_id=BOND))

    assert spread.leases(SHARED_TAG) == {"shared"}
    assert spread.leases(bucket_tag(BOND)) == {"none"}


async def test_leases_of_both_halves_are_renewed(
    spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spread.reserve("a", PLAN)
    monkeypatch.setattr("dataplane.limits.limiter._YOUNG_SECONDS", 0.0)
    for tag in (SHARED_TAG, bucket_tag(ACME)):
        spread.client_of(tag).zadd(Keyspace(tag).leases, {"a": 1_000})

    await spread.limiter.renew_leases()
    await until(lambda: not spread.limiter.queued)

    for tag in (SHARED_TAG, bucket_tag(ACME)):
        score = spread.client_of(tag).zscore(Keyspace(tag).leases, "a")
        assert isinstance(score, float)
        assert score > 1_000


async def test_what_a_former_process_left_is_settled_or_charged_in_both_halves(
    spread: Spread,
) -> None:
    former = await ShardedLimiter.connect(spread.target_of, timeout_seconds=1.0)
    spread.limiter, present = former, spread.limiter
    await spread.reserve("told", PLAN)
    await spread.reserve("lost", PLAN)
    await former.aclose(1.0)
    spread.limiter = present

    assert await present.settle_again("told", 4, 30, organization_id=ACME)
    assert await present.forfeit("lost", 70, organization_id=ACME)

    found = await spread.balances(PLAN)
    assert {found[name] for name in ("global_spend_total", "organization_spend_total")} == {
        (100, 0)
    }
    assert {found[name] for name in ("endpoint_tokens_total", "user_tokens_total")} == {(14, 0)}
    assert not await present.settle_again("told", 4, 30, organization_id=ACME)
    assert await present.settle_again("lost", 5, 50, organization_id=ACME)
    assert not await present.forfeit("nobody", organization_id=BOND)


async def test_budgets_of_both_halves_tell_that_they_are_reached(spread: Spread) -> None:
    plan = plan_for(ACME, replace(SOFT, is_hard=True, capacity=800))
    reservation = await spread.reserve("a", plan, cost=800)
    reservation.settle(1, 800)

    await until(lambda: len(spread.crossings) == 3)

    told = sorted((each.key, each.percent) for each in spread.crossings)
    own, shared = (
        Keyspace(tag).counter_key(CounterName(kind, subject_id, Unit.SPEND, Window.TOTAL, "total"))
        for tag, kind, subject_id in (
            (bucket_tag(ACME), SubjectKind.ORGANIZATION, ACME),
            (SHARED_TAG, SubjectKind.GLOBAL, ""),
        )
    )
    assert told == sorted([(own, 80), (shared, 80), (shared, 100)])


async def test_what_is_in_flight_is_told_by_each_half_for_itself(spread: Spread) -> None:
    reservation = await spread.reserve("a", PLAN)

    halves = [await spread.limiter.open(tag) for tag in (SHARED_TAG, bucket_tag(ACME))]
    [shared], [own] = (each.in_flight() for each in halves)

    assert (shared.request_id, own.request_id) == ("a", "a")
    prefix = Keyspace(SHARED_TAG).prefix
    assert all(str(key).startswith(prefix) for key in shared.counters[1::5])
    assert own.meta == b"{}"
    assert b'"is_shared_half":true' in shared.meta
    reservation.settle(1, 1)
    assert spread.limiter.in_flight() == []


async def test_closing_writes_what_is_queued_in_every_bucket(spread: Spread) -> None:
    plans = [plan_for(each) for each in (ACME, BOND)]
    for number, plan in enumerate(plans):
        (await spread.reserve(f"r{number}", plan)).settle(4, 30)

    assert await spread.limiter.aclose(1.0) == 0

    with pytest.raises(LimitsUnavailable):
        await spread.reserve("late", plan_for(BOND))
    with pytest.raises(LimitsUnavailable):
        await spread.reserve("later", plan_for("org_9"))
    assert spread.leases(SHARED_TAG) == set()
