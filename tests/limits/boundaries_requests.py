"""Directed cases of requests: what counts, what refuses, what comes back, and only once."""

from typing import Final

from dataplane.domain.limiting import SubjectKind, Unit, Window, plan_of
from dataplane.limits.counters import LEASE_MS, SLOT_GRACE_MS
from dataplane.limits.operations import Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import layer, only, shadowed


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


def a_slot_whose_owner_died_is_free_when_it_is_reaped(driver: Driver) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 1)
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(LEASE_MS - 1)
    fence = driver.maintain("n1", 120_000)[1]
    assert driver.reap("a", fence) == [Outcome.MOVED]
    assert driver.admit("b", plan)[0] == Outcome.DENY
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.DENY
    assert driver.reap("a", fence)[0] == Outcome.OK
    assert driver.balances(plan) == [(0, 0)]
    assert driver.admit("d", plan)[0] == Outcome.OK


def an_outage_that_outlasts_leases_gives_no_slot_away(driver: Driver) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 2)
    assert driver.admit("a", plan)[0] == Outcome.OK
    assert driver.admit("b", plan)[0] == Outcome.OK
    driver.tick(LEASE_MS + 1_000)
    assert driver.admit("c", plan)[0] == Outcome.DENY
    assert driver.heartbeat("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(2, 0)]
    driver.tick(SLOT_GRACE_MS)
    assert driver.heartbeat("b")[0] == Outcome.OK
    assert driver.balances(plan) == [(1, 0)]
    lifetime_ms = driver.redis.pttl(driver.counter_key(plan.layers[0]))
    assert isinstance(lifetime_ms, int)
    assert lifetime_ms > SLOT_GRACE_MS + LEASE_MS
    assert driver.settle("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(0, 0)]


def a_slot_that_nobody_reaps_is_not_taken_for_ever(driver: Driver) -> None:
    plan = only(Unit.PARALLEL, Window.NONE, 1)
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(LEASE_MS - 1)
    assert driver.heartbeat("a")[0] == Outcome.OK
    driver.tick(LEASE_MS + SLOT_GRACE_MS - 1)
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
    assert driver.admit("b", plan, epoch="another") == [Outcome.COLD]
    assert driver.balances(plan) == [(0, 0)]
    assert driver.reservations() == set()


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


CASES: Final[tuple[Case, ...]] = (
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
    a_slot_whose_owner_died_is_free_when_it_is_reaped,
    an_outage_that_outlasts_leases_gives_no_slot_away,
    a_slot_that_nobody_reaps_is_not_taken_for_ever,
    an_admit_whose_caller_has_left_does_nothing,
    a_shadow_layer_counts_and_never_refuses,
    the_largest_amounts_are_exact_to_the_unit,
)
