"""Directed cases of time: slots that leave a window, periods that end, clocks that step back."""

from typing import Final

from dataplane.domain.limiting import Unit, Window, plan_of
from dataplane.limits.counters import LEASE_MS, SLOT_GRACE_MS
from dataplane.limits.operations import Balance, Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS, layer, only
from tests.limits.script_runner import NOON_MS

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000


def a_window_filled_in_the_last_ms_of_a_slot_stays_full_for_its_whole_length(
    driver: Driver,
) -> None:
    plan = only(Unit.REQUESTS, Window.MINUTE, 2)
    last_ms = NOON_MS + SLOT_MS - 1
    driver.set_clock(last_ms)
    assert driver.admit("a", plan)[0] == Outcome.OK
    assert driver.admit("b", plan)[0] == Outcome.OK

    for later_ms in (0, SLOT_MS, WINDOW_MS - SLOT_MS, WINDOW_MS - 1, WINDOW_MS):
        driver.set_clock(last_ms + later_ms)
        denied = driver.admit(f"c{later_ms}", plan)
        assert denied[0] == Outcome.DENY, later_ms
        assert denied[3] == [0, WINDOW_MS + 1 - later_ms], later_ms

    driver.set_clock(last_ms + WINDOW_MS + 1)
    assert driver.admit("d", plan)[0] == Outcome.OK


def a_window_filled_in_the_first_ms_of_a_slot_returns_one_slot_late_at_most(
    driver: Driver,
) -> None:
    plan = only(Unit.TOKENS, Window.MINUTE, 100)
    assert driver.admit("a", plan, tokens=60)[0] == Outcome.OK
    driver.tick(SLOT_MS)
    assert driver.admit("b", plan, tokens=40)[0] == Outcome.OK

    driver.set_clock(NOON_MS + WINDOW_MS + SLOT_MS - 1)
    denied = driver.admit("c", plan, tokens=61)
    assert denied[0] == Outcome.DENY
    assert denied[3] == [0, SLOT_MS + 1]
    assert driver.admit("d", plan, tokens=60)[3] == [0, 1]
    driver.tick(1)
    assert driver.admit("e", plan, tokens=60)[0] == Outcome.OK
    assert driver.admit("f", plan, tokens=1)[0] == Outcome.DENY


def a_clock_that_steps_back_opens_no_new_window_and_no_old_day(driver: Driver) -> None:
    rolling = only(Unit.REQUESTS, Window.MINUTE, 1)
    driver.set_clock(NOON_MS + WINDOW_MS + 2 * SLOT_MS)
    assert driver.admit("a", rolling)[0] == Outcome.OK
    driver.tick(-20_000)
    assert driver.admit("b", rolling)[0] == Outcome.DENY
    driver.tick(20_000 + WINDOW_MS)
    assert driver.admit("c", rolling)[0] == Outcome.DENY

    daily = only(Unit.REQUESTS, Window.DAY, 1)
    driver.set_clock(MIDNIGHT_MS)
    assert driver.admit("d", daily)[0] == Outcome.OK
    driver.tick(-1)
    assert driver.admit("e", daily)[0] == Outcome.DENY
    assert driver.limiter_now_ms == MIDNIGHT_MS


def a_period_ends_to_the_millisecond(driver: Driver) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.DAY, 1), layer(Unit.SPEND, Window.DAY, 10)])
    driver.set_clock(MIDNIGHT_MS - 1)
    first = driver.admit("a", plan, cost=10)
    assert (first[0], first[2], first[3]) == (Outcome.OK, 0, [0, 1, 0, 1])
    assert driver.admit("b", plan, cost=1)[0] == Outcome.DENY

    driver.tick(1)
    second = driver.admit("c", plan, cost=10)
    assert (second[0], second[3]) == (Outcome.OK, [0, 86_400_000, 0, 86_400_000])


def the_period_is_chosen_by_the_clock_of_redis_not_of_the_caller(driver: Driver) -> None:
    plan = only(Unit.REQUESTS, Window.DAY, 1)
    yesterday = driver.bind(plan, MIDNIGHT_MS - 1)
    driver.set_clock(MIDNIGHT_MS)
    crossed = driver.admit("a", plan, bound=yesterday)
    assert (crossed[0], crossed[2], crossed[3]) == (Outcome.OK, 1, [0, 86_400_000])
    assert driver.admit("b", plan, bound=driver.bind(plan, MIDNIGHT_MS))[0] == Outcome.DENY

    tomorrow = driver.bind(plan, MIDNIGHT_MS + 86_400_000)
    assert driver.admit("c", plan, bound=tomorrow)[0] == Outcome.STALE
    driver.tick(86_400_000)
    assert driver.admit("d", plan, bound=yesterday)[0] == Outcome.STALE


def a_settle_of_an_expired_slot_leaves_the_current_ones_alone(driver: Driver) -> None:
    plan = only(Unit.TOKENS, Window.MINUTE, 100)
    assert driver.admit("a", plan, tokens=80)[0] == Outcome.OK
    driver.tick(WINDOW_MS + SLOT_MS)
    assert driver.admit("b", plan, tokens=50)[0] == Outcome.OK
    assert driver.settle("a", tokens=10)[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0)]
    assert driver.settle("b", tokens=70)[0] == Outcome.OK
    assert driver.balances(plan) == [(70, 0)]


def a_settle_moves_the_slot_and_the_period_of_its_reservation(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.TOKENS, Window.MINUTE, 100),
            layer(Unit.TOKENS, Window.DAY, 100),
            layer(Unit.SPEND, Window.DAY, 100),
        ]
    )
    driver.set_clock(MIDNIGHT_MS - 1)
    assert driver.admit("a", plan, tokens=60, cost=60)[0] == Outcome.OK
    driver.tick(1)
    assert driver.admit("b", plan, tokens=40, cost=40)[0] == Outcome.OK
    assert driver.settle("a", tokens=10, cost=10)[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0), (40, 0), (0, 40)]
    driver.set_clock(MIDNIGHT_MS - 1 + WINDOW_MS + 1)
    assert driver.balances(plan)[0] == (40, 0)


def a_balance_tells_when_all_of_it_is_back(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.TOKENS, Window.MINUTE, 90),
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.SPEND, Window.TOTAL, 9),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    assert driver.resets(plan) == [0, 0, MIDNIGHT_MS, 0, 0]
    assert driver.admit("a", plan, tokens=60)[0] == Outcome.OK
    driver.tick(SLOT_MS)
    assert driver.admit("b", plan, tokens=30)[0] == Outcome.OK
    second_ms = NOON_MS + SLOT_MS + SLOT_MS + WINDOW_MS
    assert driver.resets(plan) == [second_ms, second_ms, MIDNIGHT_MS, 0, 0]
    assert driver.settle("b", tokens=0)[0] == Outcome.OK
    assert driver.resets(plan)[:2] == [second_ms, NOON_MS + SLOT_MS + WINDOW_MS]

    driver.set_clock(second_ms - 1)
    assert driver.resets(plan)[:2] == [second_ms, 0]
    driver.tick(1)
    assert driver.resets(plan)[:2] == [0, 0]

    driver.set_clock(MIDNIGHT_MS)
    yesterday = driver.bind(plan, MIDNIGHT_MS - 1)
    crossed = driver.call(Balance(yesterday)).answers[0]
    assert crossed[4] == [0, 0, MIDNIGHT_MS + 86_400_000, 0, 0]


def keys_expire_after_what_they_count(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.REQUESTS, Window.TOTAL, 9),
            layer(Unit.SPEND, Window.DAY, 9),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    assert driver.admit("a", plan)[0] == Outcome.OK
    bound = driver.bind(plan)
    until_end = MIDNIGHT_MS - NOON_MS + 3 * 86_400_000
    expected = {
        bound.keys[0]: WINDOW_MS + 2 * SLOT_MS,
        bound.keys[1]: until_end,
        bound.keys[3]: -1,
        bound.keys[4]: until_end,
        bound.keys[6]: 2 * (LEASE_MS + SLOT_GRACE_MS),
        driver.keyspace.reservation("a"): -1,
    }
    for key, lifetime_ms in expected.items():
        actual_ms = driver.redis.pttl(key)
        assert lifetime_ms - 2_000 <= actual_ms <= lifetime_ms, key


CASES: Final[tuple[Case, ...]] = (
    a_window_filled_in_the_last_ms_of_a_slot_stays_full_for_its_whole_length,
    a_window_filled_in_the_first_ms_of_a_slot_returns_one_slot_late_at_most,
    a_clock_that_steps_back_opens_no_new_window_and_no_old_day,
    a_period_ends_to_the_millisecond,
    the_period_is_chosen_by_the_clock_of_redis_not_of_the_caller,
    a_settle_of_an_expired_slot_leaves_the_current_ones_alone,
    a_settle_moves_the_slot_and_the_period_of_its_reservation,
    a_balance_tells_when_all_of_it_is_back,
    keys_expire_after_what_they_count,
)
