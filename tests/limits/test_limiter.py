"""The limiter as the pipeline uses it, on a real server."""

import asyncio
import secrets
import time
from dataclasses import replace

import pytest

from dataplane.domain.limiting import (
    NEVER_MS,
    Demand,
    Denied,
    LimitsUnavailable,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)
from dataplane.domain.periods import FOREVER_MS, periods_at
from dataplane.limits.counters import LEASE_MS, PARALLEL, SOFT_SPEND
from dataplane.limits.crossings import Crossing
from dataplane.limits.limiter import Limiter
from tests.limits.plans import SLOT_MS, USD, WINDOW_MS, budget, layer, only, shadowed
from tests.limits.probe import Probe

PLAN = plan_of(
    [
        layer(Unit.REQUESTS, Window.TOTAL, 3),
        layer(Unit.TOKENS, Window.TOTAL, 1_000),
        layer(Unit.SPEND, Window.TOTAL, 10 * USD, SubjectKind.ORGANIZATION, "o_1"),
        layer(Unit.PARALLEL, Window.NONE, 2, SubjectKind.KEY, "k_1"),
    ]
)


async def test_a_request_holds_its_demand_until_it_is_settled(probe: Probe) -> None:
    reservation = await probe.reserve("a", PLAN, tokens=600, cost=4 * USD)

    assert [each.remaining for each in reservation.standings] == [6 * USD, 2, 400, 1]
    assert [each.period_id for each in reservation.standings] == ["total", "total", "total", ""]
    assert await probe.balances(PLAN) == [(0, 4 * USD), (1, 0), (600, 0), (1, 0)]

    reservation.settle(tokens=100, cost_nanousd=USD)

    assert await probe.balances(PLAN) == [(USD, 0), (1, 0), (100, 0), (0, 0)]
    assert probe.reservation("a") is None


async def test_a_balance_says_when_all_of_a_layer_is_back(probe: Probe) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.SPEND, Window.TOTAL, 9),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    before = await probe.limiter.balances(plan)
    reservation = await probe.reserve("a", plan)

    after = await probe.limiter.balances(plan)

    day = periods_at(Window.DAY, "UTC", reservation.admitted_at_ms)
    assert [each.resets_at_ms for each in before] in (
        [None, day.end_ms, None, None],
        [None, day.start_ms, None, None],  # midnight came between
    )
    minute, *others = [each.resets_at_ms for each in after]
    assert minute is not None
    assert WINDOW_MS < minute - reservation.admitted_at_ms <= WINDOW_MS + SLOT_MS
    assert others in ([day.end_ms, None, None], [day.next_end_ms, None, None])


async def test_a_second_settle_or_release_changes_nothing(probe: Probe) -> None:
    reservation = await probe.reserve("a", PLAN, tokens=600, cost=4 * USD)

    reservation.settle(100, USD)
    reservation.settle(200, 2 * USD)
    reservation.release()

    assert await probe.balances(PLAN) == [(USD, 0), (1, 0), (100, 0), (0, 0)]


async def test_a_released_request_has_taken_nothing(probe: Probe) -> None:
    reservation = await probe.reserve("a", PLAN, tokens=600, cost=4 * USD)

    reservation.release()

    assert await probe.balances(PLAN) == [(0, 0)] * 4


async def test_a_denial_names_the_binding_layer_and_the_money(probe: Probe) -> None:
    first = await probe.reserve("a", PLAN, cost=3 * USD)
    first.settle(1, 2 * USD)
    await probe.reserve("b", PLAN, cost=5 * USD)

    with pytest.raises(Denied) as short:
        await probe.reserve("c", PLAN, cost=4 * USD)
    with pytest.raises(Denied) as too_large:
        await probe.reserve("d", PLAN, cost=11 * USD)

    denial = short.value.denial
    assert denial.binding.layer.name == "organization_spend_total"
    assert (denial.binding.remaining, denial.binding.reset_ms) == (3 * USD, NEVER_MS)
    assert (denial.settled_nanousd, denial.held_nanousd) == (2 * USD, 5 * USD)
    assert not denial.is_never
    assert [each.layer for each in denial.standings] == list(PLAN.layers)
    assert too_large.value.denial.is_never


async def test_a_sequential_caller_with_one_slot_always_finds_it_free(probe: Probe) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 1)

    for number in range(50):
        reservation = await probe.reserve(f"r{number}", plan)
        reservation.settle(1, 1)

    assert await probe.balances(plan) == [(0, 0)]


async def test_concurrent_requests_travel_together_and_are_admitted_exactly(probe: Probe) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.TOTAL, 150), layer(Unit.SPEND, Window.TOTAL, USD)])
    probe.redis.config_resetstat()

    outcomes = await asyncio.gather(
        *(probe.reserve(f"r{number}", plan) for number in range(200)), return_exceptions=True
    )

    assert sum(isinstance(outcome, Denied) for outcome in outcomes) == 50
    assert await probe.balances(plan) == [(150, 0), (0, 150)]
    stats = probe.redis.info("commandstats")
    assert isinstance(stats, dict)
    assert stats["cmdstat_evalsha"]["calls"] <= 8


async def test_a_limit_of_nothing_refuses_without_asking(probe: Probe) -> None:
    closed = plan_of([layer(Unit.REQUESTS, Window.DAY, 5), layer(Unit.SPEND, Window.MONTH, 0)])

    with pytest.raises(Denied) as denied:
        await probe.reserve("a", closed, cost=0)

    assert denied.value.denial.binding.layer.name == "user_spend_per_month"
    assert denied.value.denial.is_never


async def test_a_shadow_limit_of_nothing_admits_and_counts(probe: Probe) -> None:
    plan = plan_of([shadowed(layer(Unit.REQUESTS, Window.TOTAL, 0))])

    reservation = await probe.reserve("a", plan)

    assert reservation.standings[0].remaining == 0
    assert await probe.balances(plan) == [(1, 0)]


async def test_a_raised_reset_generation_starts_counting_anew(probe: Probe) -> None:
    first = layer(Unit.REQUESTS, Window.TOTAL, 1)
    await probe.reserve("a", plan_of([first]))
    with pytest.raises(Denied):
        await probe.reserve("b", plan_of([first]))

    await probe.reserve("c", plan_of([replace(first, reset_generation=1)]))


async def test_the_same_request_asked_twice_counts_once(probe: Probe) -> None:
    first = await probe.reserve("a", PLAN, tokens=10, cost=7)
    again = await probe.reserve("a", PLAN, tokens=10, cost=7)

    assert first.standings == again.standings
    assert first.admitted_at_ms == again.admitted_at_ms
    assert (await probe.balances(PLAN))[0] == (0, 7)


async def test_a_reservation_of_a_dead_process_is_charged_at_what_it_reserved(
    probe: Probe,
) -> None:
    await probe.reserve("a", PLAN, tokens=10, cost=4 * USD)
    async with Probe.on(probe.redis_url) as stranger:
        assert not await stranger.limiter.forfeit("a")

    successor = await Limiter.connect(probe.redis_url, hash_tag=probe.hash_tag)
    assert await successor.forfeit("a")
    assert await successor.forfeit("a")
    assert await probe.balances(PLAN) == [(4 * USD, 0), (1, 0), (10, 0), (0, 0)]

    assert await successor.settle_again("a", 5, 3 * USD)
    assert not await successor.settle_again("a", 5, 3 * USD)
    assert not await successor.forfeit("a")
    assert (await probe.balances(PLAN))[0] == (3 * USD, 0)
    await successor.aclose(1.0)


async def test_a_record_that_is_replayed_settles_once(probe: Probe) -> None:
    await probe.reserve("a", PLAN, tokens=10, cost=4 * USD)
    successor = await Limiter.connect(probe.redis_url, hash_tag=probe.hash_tag)

    assert await successor.settle_again("a", 5, USD)
    assert not await successor.settle_again("a", 5, USD)

    assert await probe.balances(PLAN) == [(USD, 0), (1, 0), (5, 0), (0, 0)]
    await successor.aclose(1.0)


async def test_a_request_in_flight_keeps_its_lease_and_its_slot(probe: Probe) -> None:
    reservation = await probe.reserve("a", PLAN)
    slot = probe.keyspace.counter(PLAN.layers[-1])
    for key in (probe.keyspace.leases, slot):
        probe.redis.zincrby(key, -20_000, "a")
    reservation.since -= 20

    def lease_ms() -> float:
        scores = [probe.redis.zscore(key, "a") for key in (probe.keyspace.leases, slot)]
        return min(float(score or 0) for score in scores)

    assert lease_ms() < reservation.admitted_at_ms + 15_000
    await probe.limiter.renew_leases()
    await probe.until(lambda: lease_ms() >= reservation.admitted_at_ms + LEASE_MS)


async def test_closing_writes_what_is_queued_and_refuses_from_then_on(redis_url: str) -> None:
    async with Probe.on(redis_url) as probe:
        leaving = await Limiter.connect(redis_url, hash_tag=probe.hash_tag)
        reservations = [
            await leaving.reserve(
                f"r{number}", only(Unit.SPEND, Window.TOTAL, 999), Demand(1, 5), b""
            )
            for number in range(100)
        ]
        for reservation in reservations:
            reservation.settle(1, 2)

        assert await leaving.aclose(1.0) == 0

        assert await probe.balances(only(Unit.SPEND, Window.TOTAL, 999)) == [(200, 0)]
        with pytest.raises(LimitsUnavailable):
            await leaving.reserve("late", PLAN, Demand(1, 1), b"")


async def test_what_the_meta_holds_is_kept_byte_for_byte(probe: Probe) -> None:
    meta = '{"model":"grüße","note":"\\u0000 \n 模型"}'.encode() * 3

    await probe.limiter.reserve("a", PLAN, Demand(1, 1), meta)

    record = probe.reservation("a")
    assert record is not None
    assert meta in record
    [held] = probe.limiter.in_flight()
    assert held.meta == meta


async def test_a_nonsense_settlement_is_refused_and_the_hold_stays(probe: Probe) -> None:
    reservation = await probe.reserve("a", PLAN)

    with pytest.raises(ValueError, match="settlement"):
        reservation.settle(-1, 0)

    assert reservation.is_open
    reservation.release()


async def test_a_key_of_a_foreign_type_fails_one_request_only(probe: Probe) -> None:
    broken, sound = only(Unit.REQUESTS, Window.TOTAL, 5), only(Unit.SPEND, Window.TOTAL, 5)
    probe.redis.rpush(probe.keyspace.counter(broken.layers[0], "total"), "not a counter")

    outcomes = await asyncio.gather(
        probe.reserve("a", broken), probe.reserve("b", sound), return_exceptions=True
    )

    assert isinstance(outcomes[0], LimitsUnavailable)
    assert not isinstance(outcomes[1], BaseException)
    assert probe.limiter.is_available


async def test_key_spaces_on_one_server_do_not_meet(redis_url: str) -> None:
    plan = only(Unit.REQUESTS, Window.TOTAL, 1)
    async with Probe.on(redis_url) as one, Probe.on(redis_url) as other:
        await one.reserve(secrets.token_hex(8), plan)
        await other.reserve(secrets.token_hex(8), plan)


async def test_a_budget_that_is_reached_is_told_once_for_each_percentage(probe: Probe) -> None:
    plan = plan_of([budget(100, Window.TOTAL)])
    key = probe.keyspace.counter(plan.layers[0], "total")
    for number, cost in enumerate([79, 1, 5, 15, 0]):
        reservation = await probe.reserve(f"r{number}", plan, cost=cost)
        reservation.settle(1, cost)
    await probe.until(lambda: probe.limiter.queued == 0)

    told = [(each.key, each.percent, each.capacity, each.settled) for each in probe.crossings]
    assert told == [(key, 80, 100, 80), (key, 100, 100, 100)]
    assert abs(probe.crossings[0].at_ms - time.time() * 1000) < 5_000


async def test_what_a_former_process_left_tells_of_the_budgets_it_reaches(probe: Probe) -> None:
    plan = plan_of([budget(100, Window.TOTAL)])
    for name in ("charged", "held", "settled"):
        await probe.reserve(name, plan, cost=30)

    await probe.limiter.forfeit("held")
    await probe.limiter.forfeit("charged", 20)
    assert [each.percent for each in probe.crossings] == [80]
    assert await probe.balances(plan) == [(50, 30)]

    await probe.limiter.settle_again("settled", 1, 60)
    assert [(each.percent, each.settled, each.held) for each in probe.crossings] == [
        (80, 30, 60),
        (100, 110, 0),
    ]


async def test_whoever_hears_of_a_budget_and_fails_disturbs_nobody(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_crossing: Crossing) -> None:
        raise RuntimeError("the listener is broken")

    async with Probe.on(redis_url) as probe:
        plan = plan_of([budget(10, Window.TOTAL)])
        deaf = await Limiter.connect(redis_url, hash_tag=probe.hash_tag, on_crossing=fail)
        reservation = await deaf.reserve("a", plan, Demand(1, 10), b"")

        reservation.settle(1, 9)

        assert [each.settled for each in await deaf.balances(plan)] == [9]
        assert (deaf.dropped, deaf.is_available) == (0, True)
        assert "the listener is broken" in caplog.text
        await deaf.aclose(1.0)


async def test_a_soft_budget_holds_what_is_expected_and_more_while_it_has_room(
    probe: Probe,
) -> None:
    plan = plan_of([budget(100, Window.TOTAL, is_hard=False)])
    demand = Demand(1, 90, expected_nanousd=20)
    first = await probe.limiter.reserve("a", plan, demand, b"")
    second = await probe.limiter.reserve("b", plan, demand, b"")
    assert await probe.balances(plan) == [(0, 40)]

    assert await first.extend(70)
    assert not await second.extend(40)
    assert await probe.balances(plan) == [(0, 90)]

    first.settle(1, 65)
    second.release()
    assert await first.extend(99)
    assert await probe.balances(plan) == [(65, 0)]


async def test_what_is_in_flight_is_told_until_it_is_settled(probe: Probe) -> None:
    plan = plan_of(
        [
            budget(100, Window.TOTAL, is_hard=False),
            layer(Unit.REQUESTS, Window.MINUTE, 5),
            layer(Unit.PARALLEL, Window.NONE, 5),
        ]
    )
    first = await probe.limiter.reserve("a", plan, Demand(1, 90, 20), b"first")
    second = await probe.reserve("b", plan)
    await first.extend(30)

    told = {held.request_id: held for held in probe.limiter.in_flight()}

    assert set(told) == {"a", "b"}
    spend, parallel = plan.layers[1], plan.layers[2]
    assert told["a"].counters == [
        *(SOFT_SPEND, probe.keyspace.counter(spend, "total"), 30, 100, FOREVER_MS),
        *(PARALLEL, probe.keyspace.counter(parallel), 1, 0, 0),
    ]
    assert (told["a"].meta, told["a"].admitted_at_ms) == (b"first", first.admitted_at_ms)

    first.settle(1, 1)
    second.release()
    assert probe.limiter.in_flight() == []
