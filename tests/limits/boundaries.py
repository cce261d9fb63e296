"""Directed cases at the boundaries of time and state; each is a sentence that must hold.

They run against the script that production runs, and against mutants of it: for each
mutant at least the named case must fail.
"""

from collections.abc import Callable
from typing import Final

from dataplane.domain.limiting import SubjectKind, Unit, Window, plan_of
from dataplane.limits.operations import Balance, Outcome
from tests.limits.driver import NOON_MS, Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS, layer, only, shadowed

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000
Case = Callable[[Driver], None]


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


def a_layer_admits_exactly_its_capacity(driver: Driver) -> None:
    for unit, window in (
        (Unit.REQUESTS, Window.MINUTE),
        (Unit.REQUESTS, Window.DAY),
        (Unit.PARALLEL, Window.NONE),
    ):
        plan = only(unit, window, 3)
        codes = [driver.admit(f"{unit}{window}{i}", plan)[0] for i in range(4)]
        assert codes == [Outcome.OK] * 3 + [Outcome.DENY]
    for unit, window in (
        (Unit.TOKENS, Window.MINUTE),
        (Unit.TOKENS, Window.MONTH),
        (Unit.SPEND, Window.MONTH),
    ):
        plan = only(unit, window, 9)
        answers = [driver.admit(f"{unit}{window}{i}", plan, 3, 3) for i in range(4)]
        assert [answer[0] for answer in answers] == [Outcome.OK] * 3 + [Outcome.DENY]
        assert [answer[3][0] for answer in answers] == [6, 3, 0, 0]


def a_request_larger_than_a_limit_never_fits(driver: Driver) -> None:
    plan = only(Unit.SPEND, Window.DAY, 100)
    assert driver.admit("a", plan, cost=40)[0] == Outcome.OK
    too_large = driver.admit("b", plan, cost=101)
    assert (too_large[0], too_large[4], too_large[5]) == (Outcome.DENY, 1, 1)
    short = driver.admit("c", plan, cost=61)
    assert short[4:] == [1, 0, 0, 40]
    assert driver.admit("d", plan, cost=60)[0] == Outcome.OK


def a_limit_of_nothing_refuses_even_what_costs_nothing(driver: Driver) -> None:
    plan = only(Unit.SPEND, Window.DAY, 0)
    assert driver.admit("a", plan, cost=0)[:1] == [Outcome.DENY]


def a_denied_request_changes_no_counter_of_any_layer(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.DAY, 9, SubjectKind.GLOBAL, "all"),
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.TOKENS, Window.MINUTE, 9),
            layer(Unit.SPEND, Window.DAY, 9),
            layer(Unit.PARALLEL, Window.NONE, 1),
        ]
    )
    assert driver.admit("a", plan)[0] == Outcome.OK
    before = {
        key: driver.redis.dump(key) for key in driver.redis.keys(f"{driver.keyspace.prefix}*")
    }
    denied = driver.admit("b", plan)
    assert (denied[0], denied[4]) == (Outcome.DENY, 5)
    after = {key: driver.redis.dump(key) for key in driver.redis.keys(f"{driver.keyspace.prefix}*")}
    assert before == after


def every_layer_counts_and_the_first_short_one_binds(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.DAY, 5, SubjectKind.GLOBAL, "all"),
            layer(Unit.SPEND, Window.DAY, 50, SubjectKind.ORGANIZATION, "o_1"),
            layer(Unit.REQUESTS, Window.MINUTE, 5),
            layer(Unit.TOKENS, Window.MINUTE, 50),
            layer(Unit.TOKENS, Window.TOTAL, 50),
            layer(Unit.SPEND, Window.TOTAL, 50),
            layer(Unit.PARALLEL, Window.NONE, 5, SubjectKind.KEY, "k_1"),
        ]
    )
    for i in range(1, 6):
        assert driver.admit(f"a{i}", plan, 10, 10)[0] == Outcome.OK
        held = (0, 10 * i)
        assert driver.balances(plan) == [
            (i, 0), held, (i, 0), (10 * i, 0), (10 * i, 0), held, (i, 0),
        ]  # fmt: skip
    denied = driver.admit("b", plan, 10, 10)
    assert (denied[0], denied[4]) == (Outcome.DENY, 1)
    assert denied[3][9] == -1


def a_settle_frees_what_was_held_and_the_reservation(driver: Driver) -> None:
    plan = plan_of([layer(Unit.SPEND, Window.DAY, 100), layer(Unit.PARALLEL, Window.NONE, 1)])
    assert driver.admit("a", plan, cost=100)[0] == Outcome.OK
    assert driver.settle("a", cost=30)[0] == Outcome.OK
    assert driver.balances(plan) == [(30, 0), (0, 0)]
    assert driver.reservations() == set()
    assert driver.leases() == {}
    assert driver.settle("a", cost=30)[0] == Outcome.GONE
    assert driver.balances(plan) == [(30, 0), (0, 0)]
    assert driver.admit("b", plan, cost=70)[0] == Outcome.OK


def an_admit_that_is_repeated_counts_once(driver: Driver) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.MINUTE, 9), layer(Unit.SPEND, Window.DAY, 100)])
    first = driver.admit("a", plan, cost=60)
    driver.tick(7)
    second = driver.admit("a", plan, cost=60)
    assert (first[0], second[0]) == (Outcome.OK, Outcome.DUPLICATE)
    assert first[1:] == second[1:]
    assert driver.balances(plan) == [(1, 0), (0, 60)]


def a_release_gives_back_all_but_the_rolling_request(driver: Driver) -> None:
    plan = plan_of(
        [
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.TOKENS, Window.MINUTE, 9),
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.TOKENS, Window.DAY, 9),
            layer(Unit.SPEND, Window.DAY, 9),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    assert driver.admit("a", plan, 5, 5)[0] == Outcome.OK
    assert driver.release("a")[0] == Outcome.OK
    given_back = [(1, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]
    assert driver.balances(plan) == given_back
    assert driver.release("a")[0] == Outcome.GONE
    assert driver.settle("a", 5, 5)[0] == Outcome.GONE
    assert driver.admit("a", plan, 5, 5) == [Outcome.RELEASED]
    assert driver.balances(plan) == given_back
    assert driver.leases() == {}


def a_release_that_overtakes_its_admit_wins(driver: Driver) -> None:
    plan = only(Unit.SPEND, Window.DAY, 9)
    assert driver.release("a")[0] == Outcome.GONE
    assert driver.admit("a", plan) == [Outcome.RELEASED]
    assert driver.balances(plan) == [(0, 0)]


def a_late_settle_corrects_what_the_reaper_charged(driver: Driver) -> None:
    plan = plan_of([layer(Unit.SPEND, Window.DAY, 100), layer(Unit.PARALLEL, Window.NONE, 1)])
    assert driver.admit("a", plan, cost=50)[0] == Outcome.OK
    assert driver.reap("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0), (0, 0)]
    assert driver.reap("a")[0] == Outcome.DUPLICATE
    assert driver.balances(plan) == [(50, 0), (0, 0)]
    assert driver.settle("a", cost=20)[0] == Outcome.OK
    assert driver.balances(plan) == [(20, 0), (0, 0)]
    assert driver.settle("a", cost=20)[0] == Outcome.GONE
    assert driver.reap("a")[0] == Outcome.GONE
    assert driver.balances(plan) == [(20, 0), (0, 0)]


def a_slot_whose_owner_died_is_free_after_one_lease(driver: Driver) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 1)
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(29_999)
    assert driver.admit("b", plan)[0] == Outcome.DENY
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.OK


def a_heartbeat_keeps_a_slot_and_does_not_take_back_a_lost_one(driver: Driver) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 1)
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(29_999)
    assert driver.heartbeat("a")[0] == Outcome.OK
    driver.tick(29_999)
    assert driver.admit("b", plan)[0] == Outcome.DENY
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.OK
    assert driver.heartbeat("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0)]
    assert driver.settle("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0)]
    assert driver.heartbeat("a")[0] == Outcome.GONE


def an_admit_whose_caller_has_left_does_nothing(driver: Driver) -> None:
    plan = only(Unit.SPEND, Window.DAY, 9)
    late = driver.admit("a", plan, not_after_ms=driver.server_now_ms - 1)
    assert late == [Outcome.EXPIRED]
    assert driver.admit("b", plan, epoch=b"another") == [Outcome.COLD]
    assert driver.balances(plan) == [(0, 0)]
    assert driver.reservations() == set()


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


def a_shadow_layer_counts_and_never_refuses(driver: Driver) -> None:
    plan = plan_of(
        [
            shadowed(layer(Unit.REQUESTS, Window.DAY, 1)),
            shadowed(layer(Unit.SPEND, Window.DAY, 0)),
            layer(Unit.REQUESTS, Window.MINUTE, 2),
        ]
    )
    answers = [driver.admit(f"a{i}", plan) for i in range(3)]
    assert [answer[0] for answer in answers] == [Outcome.OK, Outcome.OK, Outcome.DENY]
    assert answers[2][4] == 1
    assert driver.balances(plan) == [(2, 0), (2, 0), (0, 2)]


def the_largest_amounts_are_exact_to_the_unit(driver: Driver) -> None:
    limit = 9_000_000 * 10**9
    plan = only(Unit.SPEND, Window.MONTH, limit)
    assert driver.admit("a", plan, cost=10**15)[0] == Outcome.OK
    assert driver.settle("a", cost=10**15)[0] == Outcome.OK
    assert driver.admit("b", plan, cost=limit - 10**15 + 1)[0] == Outcome.DENY
    assert driver.admit("c", plan, cost=limit - 10**15 - 1)[3][0] == 1
    assert driver.admit("d", plan, cost=2)[0] == Outcome.DENY
    assert driver.settle("c", cost=limit - 10**15 - 1)[0] == Outcome.OK
    assert driver.balances(plan) == [(limit - 1, 0)]
    assert driver.admit("e", plan, cost=1)[0] == Outcome.OK


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
        bound.keys[6]: 60_000,
        driver.keyspace.reservation("a"): 86_400_000,
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
    a_layer_admits_exactly_its_capacity,
    a_request_larger_than_a_limit_never_fits,
    a_limit_of_nothing_refuses_even_what_costs_nothing,
    a_denied_request_changes_no_counter_of_any_layer,
    every_layer_counts_and_the_first_short_one_binds,
    a_settle_frees_what_was_held_and_the_reservation,
    an_admit_that_is_repeated_counts_once,
    a_release_gives_back_all_but_the_rolling_request,
    a_release_that_overtakes_its_admit_wins,
    a_late_settle_corrects_what_the_reaper_charged,
    a_slot_whose_owner_died_is_free_after_one_lease,
    a_heartbeat_keeps_a_slot_and_does_not_take_back_a_lost_one,
    an_admit_whose_caller_has_left_does_nothing,
    a_balance_tells_when_all_of_it_is_back,
    a_shadow_layer_counts_and_never_refuses,
    the_largest_amounts_are_exact_to_the_unit,
    keys_expire_after_what_they_count,
)
