"""Directed cases of rates: so many every so often, a burst apart.

Intervals are of seconds: keys end by the server's own time, which goes on while the test's stands.
"""

from typing import Final

from dataplane.domain.limiting import SubjectKind, Unit, Window, plan_of
from dataplane.limits.operations import Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import layer, rate, shadowed
from tests.limits.script_runner import NOON_MS


def a_rate_passes_its_burst_and_then_one_each_interval(driver: Driver) -> None:
    plan = plan_of([rate(10, 60_000, burst=3)])
    answers = [driver.admit(f"a{i}", plan) for i in range(4)]
    assert [answer[0] for answer in answers] == [Outcome.OK] * 3 + [Outcome.DENY]
    assert [answer[3][0] for answer in answers] == [2, 1, 0, 0]
    assert [answer[3][1] for answer in answers] == [6_000, 12_000, 18_000, 6_000]
    assert answers[3][4:] == [1, 0, 0, 0]

    driver.tick(5_999)
    assert driver.admit("b", plan)[3] == [0, 1]
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.OK
    assert driver.admit("d", plan)[3] == [0, 6_000]

    driver.tick(15_000)
    codes = [driver.admit(f"e{i}", plan)[0] for i in range(3)]
    assert codes == [Outcome.OK, Outcome.OK, Outcome.DENY]
    driver.tick(600_000)
    answers = [driver.admit(f"f{i}", plan) for i in range(4)]
    assert [answer[0] for answer in answers] == [Outcome.OK] * 3 + [Outcome.DENY]
    assert [answer[3][1] for answer in answers] == [6_000, 12_000, 18_000, 6_000]


def a_rate_without_a_burst_passes_its_capacity_at_once(driver: Driver) -> None:
    plan = plan_of([rate(4, 60_000)])
    codes = [driver.admit(f"a{i}", plan)[0] for i in range(5)]
    assert codes == [Outcome.OK] * 4 + [Outcome.DENY]
    driver.tick(14_999)
    assert driver.admit("b", plan)[3] == [0, 1]
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.OK


def a_rate_counts_in_microseconds(driver: Driver) -> None:
    # An interval of 8,571,429 µs: two of them after the first, not a millisecond later.
    plan = plan_of([rate(7, 60_000, burst=2)])
    assert [driver.admit(f"a{i}", plan)[0] for i in range(2)] == [Outcome.OK] * 2
    assert driver.admit("b", plan)[3] == [0, 8_572]
    driver.tick(8_572)
    assert driver.admit("c", plan)[0] == Outcome.OK
    assert driver.admit("d", plan)[3] == [0, 8_571]
    driver.tick(8_570)
    assert driver.admit("e", plan)[0] == Outcome.DENY
    driver.tick(1)
    assert driver.admit("f", plan)[0] == Outcome.OK


def no_stretch_of_time_sees_more_than_the_burst_and_its_share(driver: Driver) -> None:
    plan = plan_of([rate(7, 60_000, burst=5)])
    interval_us = plan.layers[0].emission_interval_us
    passed_ms: list[int] = []
    for number, step_ms in enumerate((1, 800, 8_571, 8_572, 120, 59_999, 420, 4_000) * 12):
        driver.tick(step_ms)
        batch = [driver.admission(f"{number}-{each}", plan) for each in range(3)]
        answers = driver.call(*batch).answers
        passed_ms += [driver.server_now_ms for each in answers if each[0] == Outcome.OK]
    for first, begin_ms in enumerate(passed_ms):
        for last in range(first, len(passed_ms)):
            most = 5 + (passed_ms[last] - begin_ms) * 1_000 // interval_us
            assert last - first + 1 <= most
    share = (passed_ms[-1] - NOON_MS) * 1_000 // interval_us
    assert share * 3 // 4 < len(passed_ms)


def a_clock_that_steps_back_gives_a_rate_nothing(driver: Driver) -> None:
    plan = plan_of([rate(1, 30_000)])
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(-20_000)
    assert driver.admit("b", plan)[3] == [0, 30_000]
    driver.set_clock(NOON_MS + 29_999)
    assert driver.admit("c", plan)[3] == [0, 1]
    driver.tick(1)
    assert driver.admit("d", plan)[0] == Outcome.OK


def what_a_rate_has_counted_never_comes_back(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000, burst=2)])
    assert driver.admit("a", plan)[0] == Outcome.OK
    assert driver.admit("b", plan)[0] == Outcome.OK
    assert driver.release("a")[0] == Outcome.OK
    assert driver.settle("b")[0] == Outcome.OK
    assert driver.admit("c", plan)[0] == Outcome.DENY


def a_request_that_another_layer_denies_is_not_in_the_rate(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000), layer(Unit.REQUESTS, Window.DAY, 0, SubjectKind.KEY)])
    assert driver.admit("a", plan)[4] == 2
    open_plan = plan_of([rate(1, 60_000)])
    assert driver.admit("b", open_plan)[0] == Outcome.OK
    assert driver.admit("c", open_plan)[0] == Outcome.DENY


def an_admit_that_is_repeated_is_in_the_rate_once(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000, burst=2)])
    assert driver.admit("a", plan)[0] == Outcome.OK
    assert driver.admit("a", plan)[0] == Outcome.DUPLICATE
    assert driver.admit("b", plan)[0] == Outcome.OK


def a_rate_of_nothing_refuses_for_good(driver: Driver) -> None:
    answer = driver.admit("a", plan_of([rate(0, 1_000, burst=5)]))
    assert (answer[0], answer[4], answer[5]) == (Outcome.DENY, 1, 1)


def a_shadow_rate_never_refuses_and_shows_what_it_would_do(driver: Driver) -> None:
    plan = plan_of([shadowed(rate(1, 60_000))])
    answers = [driver.admit(f"a{i}", plan) for i in range(3)]
    assert [answer[0] for answer in answers] == [Outcome.OK] * 3
    assert [answer[3] for answer in answers] == [[0, 60_000]] * 3
    driver.tick(60_000)
    assert driver.balances(plan) == [(0, 0)]


def a_balance_tells_how_much_of_a_rate_is_used_and_until_when(driver: Driver) -> None:
    plan = plan_of([rate(10, 60_000, burst=5)])
    assert (driver.balances(plan), driver.resets(plan)) == ([(0, 0)], [0])
    assert driver.admit("a", plan)[0] == Outcome.OK
    assert driver.admit("b", plan)[0] == Outcome.OK
    assert (driver.balances(plan), driver.resets(plan)) == ([(2, 0)], [NOON_MS + 12_000])
    driver.tick(6_001)
    assert (driver.balances(plan), driver.resets(plan)) == ([(1, 0)], [NOON_MS + 12_000])
    driver.tick(5_999)
    assert (driver.balances(plan), driver.resets(plan)) == ([(0, 0)], [0])


def a_rate_is_kept_as_long_as_it_says_something(driver: Driver) -> None:
    plan = plan_of([rate(1, 60_000, burst=3)])
    assert driver.balances(plan) == [(0, 0)]
    driver.tick(-20_000)
    assert [driver.admit(f"a{i}", plan)[0] for i in range(3)] == [Outcome.OK] * 3
    lifetime_ms = driver.redis.pttl(driver.counter_key(plan.layers[0]))
    assert isinstance(lifetime_ms, int)
    assert 198_000 < lifetime_ms <= 3 * 60_000 + 20_000


CASES: Final[tuple[Case, ...]] = (
    a_rate_passes_its_burst_and_then_one_each_interval,
    a_rate_without_a_burst_passes_its_capacity_at_once,
    a_rate_counts_in_microseconds,
    no_stretch_of_time_sees_more_than_the_burst_and_its_share,
    a_clock_that_steps_back_gives_a_rate_nothing,
    what_a_rate_has_counted_never_comes_back,
    a_request_that_another_layer_denies_is_not_in_the_rate,
    an_admit_that_is_repeated_is_in_the_rate_once,
    a_rate_of_nothing_refuses_for_good,
    a_shadow_rate_never_refuses_and_shows_what_it_would_do,
    a_balance_tells_how_much_of_a_rate_is_used_and_until_when,
    a_rate_is_kept_as_long_as_it_says_something,
)
