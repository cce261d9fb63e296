"""The limiter as the pipeline uses it, on a real server."""

import asyncio
import secrets
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
from dataplane.domain.periods import periods_at
from dataplane.limits.limiter import Limiter
from tests.limits.plans import SLOT_MS, USD, WINDOW_MS, layer, only, shadowed
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
    await probe.until(lambda: lease_ms() >= reservation.admitted_at_ms + 30_000)


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
    meta = bytes(range(256)) * 3

    await probe.limiter.reserve("a", PLAN, Demand(1, 1), meta)

    record = probe.reservation("a")
    assert record is not None
    assert meta in record


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
