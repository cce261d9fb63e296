"""Directed cases of upkeep: the maintenance lease, reaping, correcting, the clock."""

from typing import Final

from dataplane.domain.limiting import Unit, Window, plan_of
from dataplane.limits.counters import LEASE_MS, PERIOD_GRACE_MS
from dataplane.limits.operations import Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import budget, layer, only
from tests.limits.script_runner import NOON_MS

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000
REQUESTS: Final = layer(Unit.REQUESTS, Window.DAY, 100)
TOKENS: Final = layer(Unit.TOKENS, Window.DAY, 100)
MONEY: Final = budget(100)
PARALLEL: Final = layer(Unit.PARALLEL, Window.NONE, 1)


def one_node_at_a_time_maintains(driver: Driver) -> None:
    outcome, first = driver.maintain("n1")
    assert outcome == Outcome.OK
    assert driver.maintain("n2") == [Outcome.TAKEN, "n1"]
    assert driver.maintain("n1") == [Outcome.OK, first]
    assert driver.maintain("n2") == [Outcome.TAKEN, "n1"]
    lifetime_ms = driver.redis.pttl(driver.keyspace.maintenance)
    assert isinstance(lifetime_ms, int)
    assert 13_000 < lifetime_ms <= 15_000
    driver.lapse()
    outcome, second = driver.maintain("n2")
    assert outcome == Outcome.OK
    assert second > first
    assert driver.maintain("n1") == [Outcome.TAKEN, "n2"]
    assert driver.resign("n1") == [Outcome.GONE]
    assert driver.resign("n2") == [Outcome.OK]
    outcome, third = driver.maintain("n1")
    assert outcome == Outcome.OK
    assert third > second


def a_number_of_the_maintenance_lease_is_not_given_out_again_after_a_loss(driver: Driver) -> None:
    numbers = [driver.maintain("n1")[1]]
    for node_id in ("n2", "n3"):
        driver.wipe()
        driver.tick(1)
        numbers.append(driver.maintain(node_id)[1])
    assert sorted(set(numbers)) == numbers


def a_node_that_lost_the_maintenance_lease_changes_nothing(driver: Driver) -> None:
    plan = plan_of([MONEY])
    assert driver.admit("a", plan, cost=50)[0] == Outcome.OK
    stale = driver.maintain("n1")[1]
    driver.lapse()
    driver.tick(LEASE_MS)
    fence = driver.maintain("n2")[1]
    assert driver.reap("a", stale) == [Outcome.FENCED]
    assert driver.correct(MONEY, (0, 50), (9, 0), fence=stale) == [Outcome.FENCED]
    assert driver.raise_to(MONEY, 90, fence=stale) == [Outcome.FENCED]
    assert driver.open_epoch("other", stale) == [Outcome.FENCED]
    assert driver.reset_clock(stale) == [Outcome.FENCED]
    assert driver.restore("b", [], "other", stale) == [Outcome.FENCED]
    assert driver.balances(plan) == [(0, 50)]
    assert (driver.reservations(), driver.unreported()) == ({"a"}, [])
    assert driver.reap("a", fence)[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0)]


def a_lease_runs_out_to_the_millisecond(driver: Driver) -> None:
    plan = plan_of([MONEY, PARALLEL])
    assert driver.admit("a", plan, cost=50)[0] == Outcome.OK
    fence = driver.maintain("n1", 120_000)[1]
    driver.tick(LEASE_MS - 1)
    assert driver.overdue() == []
    assert driver.reap("a", fence) == [Outcome.MOVED]
    assert driver.balances(plan) == [(0, 50), (1, 0)]
    assert driver.heartbeat("a") == [Outcome.OK]
    driver.tick(LEASE_MS - 1)
    assert driver.overdue() == []
    driver.tick(1)
    assert driver.overdue() == ["a"]
    assert driver.reap("a", fence)[0] == Outcome.OK
    assert driver.overdue() == []
    assert driver.heartbeat("a") == [Outcome.GONE]
    assert driver.balances(plan) == [(50, 0), (0, 0)]


def the_oldest_overdue_and_unreported_come_first(driver: Driver) -> None:
    plan = plan_of([MONEY])
    for request_id in ("c", "a", "b"):
        assert driver.admit(request_id, plan)[0] == Outcome.OK
        driver.tick(10)
    driver.tick(LEASE_MS)
    assert driver.overdue(2) == ["c", "a"]
    for request_id in ("b", "c", "a"):
        assert driver.reap(request_id)[0] == Outcome.OK
        driver.tick(10)
    assert driver.unreported(2) == ["b", "c"]
    assert driver.unreported() == ["b", "c", "a"]


def a_reaped_request_stays_listed_until_its_record_is_in_the_ledger(driver: Driver) -> None:
    plan = plan_of([MONEY])
    key = driver.keyspace.reservation("a")
    assert driver.admit("a", plan, cost=40)[0] == Outcome.OK
    assert driver.reap("a")[0] == Outcome.OK
    listed_ms = driver.redis.pttl(key)
    assert isinstance(listed_ms, int)
    assert listed_ms > 2 * 86_400_000
    assert driver.forget("a") == [Outcome.OK]
    assert driver.unreported() == []
    forgotten_ms = driver.redis.pttl(key)
    assert isinstance(forgotten_ms, int)
    assert 3_590_000 < forgotten_ms <= 3_600_000
    assert driver.forget("a") == [Outcome.GONE]
    assert driver.settle("a", cost=10)[0] == Outcome.OK
    assert driver.balances(plan) == [(10, 0)]


def a_late_settle_moves_tokens_as_it_moves_money(driver: Driver) -> None:
    plan = plan_of([layer(Unit.TOKENS, Window.MINUTE, 100), TOKENS, REQUESTS, MONEY])
    assert driver.admit("a", plan, 60, 60)[0] == Outcome.OK
    assert driver.reap("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(60, 0), (1, 0), (60, 0), (60, 0)]
    assert driver.settle("a", 10, 20)[0] == Outcome.OK
    assert driver.balances(plan) == [(10, 0), (1, 0), (10, 0), (20, 0)]
    assert driver.settle("a", 10, 20) == [Outcome.GONE]
    assert driver.balances(plan) == [(10, 0), (1, 0), (10, 0), (20, 0)]


def a_correction_applies_only_to_what_was_read(driver: Driver) -> None:
    plan = plan_of([REQUESTS, TOKENS, MONEY])
    assert driver.admit("a", plan, 30, 30)[0] == Outcome.OK
    assert driver.correct(REQUESTS, (0, 0), (5, 0)) == [Outcome.MOVED]
    assert driver.correct(TOKENS, (29, 0), (5, 0)) == [Outcome.MOVED]
    assert driver.correct(MONEY, (0, 29), (5, 0)) == [Outcome.MOVED]
    assert driver.correct(MONEY, (1, 30), (5, 0)) == [Outcome.MOVED]
    assert driver.balances(plan) == [(1, 0), (30, 0), (0, 30)]
    assert driver.correct(REQUESTS, (1, 0), (5, 0))[0] == Outcome.OK
    assert driver.correct(TOKENS, (30, 0), (50, 0))[0] == Outcome.OK
    assert driver.correct(MONEY, (0, 30), (20, 30))[0] == Outcome.OK
    assert driver.balances(plan) == [(5, 0), (50, 0), (20, 30)]
    assert driver.settle("a", 10, 10)[0] == Outcome.OK
    assert driver.balances(plan) == [(5, 0), (30, 0), (30, 0)]


def a_correction_makes_a_counter_that_ends_with_its_period(driver: Driver) -> None:
    plan = plan_of([REQUESTS, MONEY, budget(100, Window.TOTAL)])
    assert driver.correct(REQUESTS, (0, 0), (7, 0))[0] == Outcome.OK
    assert driver.correct(MONEY, (0, 0), (70, 0))[0] == Outcome.OK
    assert driver.correct(plan.layers[2], (0, 0), (60, 0))[0] == Outcome.OK
    assert driver.balances(plan) == [(7, 0), (70, 0), (60, 0)]
    until_end_ms = MIDNIGHT_MS - NOON_MS + PERIOD_GRACE_MS
    for each, expected_ms in ((REQUESTS, until_end_ms), (MONEY, until_end_ms)):
        lifetime_ms = driver.redis.pttl(driver.counter_key(each))
        assert isinstance(lifetime_ms, int)
        assert expected_ms - 2_000 <= lifetime_ms <= expected_ms
    assert driver.redis.pttl(driver.counter_key(plan.layers[2])) == -1
    assert driver.admit("a", plan, cost=31)[4] == 2
    assert driver.admit("b", plan, cost=30)[0] == Outcome.OK
    assert driver.settle("b", cost=30)[0] == Outcome.OK
    assert driver.balances(plan) == [(8, 0), (100, 0), (90, 0)]


def a_counter_is_raised_whatever_it_is_by_then_and_never_lowered(driver: Driver) -> None:
    plan = plan_of([REQUESTS, TOKENS, MONEY])
    assert driver.admit("a", plan, 30, 30)[0] == Outcome.OK
    for each in plan.layers:
        assert driver.raise_to(each, 40, counts_held=False)[0] == Outcome.OK
        for goal in (40, 39, 0):
            assert driver.raise_to(each, goal, counts_held=False) == [Outcome.MOVED]
    assert driver.balances(plan) == [(40, 0), (40, 0), (40, 30)]
    assert driver.settle("a", 10, 10)[0] == Outcome.OK
    assert driver.balances(plan) == [(40, 0), (20, 0), (50, 0)]


def a_budget_is_not_raised_by_what_it_holds(driver: Driver) -> None:
    plan = plan_of([MONEY])
    assert driver.admit("a", plan, cost=30)[0] == Outcome.OK
    assert driver.raise_to(MONEY, 30) == [Outcome.MOVED]
    assert driver.balances(plan) == [(0, 30)]
    assert driver.raise_to(MONEY, 31)[0] == Outcome.OK
    assert driver.balances(plan) == [(31, 30)]
    assert driver.raise_to(MONEY, 61) == [Outcome.MOVED]
    assert driver.raise_to(MONEY, 61, counts_held=False)[0] == Outcome.OK
    assert driver.balances(plan) == [(61, 30)]


def a_raise_makes_a_counter_that_ends_with_its_period(driver: Driver) -> None:
    plan = plan_of([REQUESTS, MONEY, budget(100, Window.TOTAL)])
    for each in plan.layers:
        assert driver.raise_to(each, 0) == [Outcome.MOVED]
        assert not driver.redis.exists(driver.counter_key(each))
        assert driver.raise_to(each, 70)[0] == Outcome.OK
    assert driver.balances(plan) == [(70, 0)] * 3
    until_end_ms = MIDNIGHT_MS - NOON_MS + PERIOD_GRACE_MS
    for each in (REQUESTS, MONEY):
        for goal in (70, 80):
            driver.raise_to(each, goal)
            lifetime_ms = driver.redis.pttl(driver.counter_key(each))
            assert isinstance(lifetime_ms, int)
            assert until_end_ms - 2_000 <= lifetime_ms <= until_end_ms
    assert driver.redis.pttl(driver.counter_key(plan.layers[2])) == -1


def what_a_request_in_flight_holds_is_known_until_somebody_ends_it(driver: Driver) -> None:
    plan = plan_of([MONEY])
    key = driver.keyspace.reservation("a")
    assert driver.admit("a", plan, cost=30)[0] == Outcome.OK
    assert driver.redis.pttl(key) == -1
    assert driver.heartbeat("a") == [Outcome.OK]
    assert driver.redis.pttl(key) == -1
    assert driver.restore("a", driver.holdings(plan, 1, 30), "second") == [Outcome.OK]
    assert driver.redis.pttl(key) == -1
    assert driver.open_epoch("second") == [Outcome.OK]
    # All nodes are away for days.
    driver.tick(5 * 86_400_000)
    assert driver.overdue() == ["a"]
    assert driver.reap("a", driver.maintain("n1")[1])[0] == Outcome.OK
    lifetime_ms = driver.redis.pttl(key)
    assert isinstance(lifetime_ms, int)
    assert lifetime_ms > 0
    assert driver.leases() == {}


def a_clock_that_went_far_ahead_is_put_back_only_on_purpose(driver: Driver) -> None:
    plan = only(Unit.REQUESTS, Window.MINUTE, 1)
    driver.set_clock(NOON_MS + 3_600_000)
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.set_clock(NOON_MS)
    assert driver.admit("b", plan)[0] == Outcome.DENY
    assert driver.limiter_now_ms == NOON_MS + 3_600_000
    assert driver.reset_clock(driver.maintain("n1")[1]) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 0)]
    assert driver.limiter_now_ms == NOON_MS
    assert driver.leases() == {"a": NOON_MS + LEASE_MS}
    assert driver.admit("c", plan)[0] == Outcome.OK


CASES: Final[tuple[Case, ...]] = (
    one_node_at_a_time_maintains,
    a_number_of_the_maintenance_lease_is_not_given_out_again_after_a_loss,
    a_node_that_lost_the_maintenance_lease_changes_nothing,
    a_lease_runs_out_to_the_millisecond,
    the_oldest_overdue_and_unreported_come_first,
    a_reaped_request_stays_listed_until_its_record_is_in_the_ledger,
    a_late_settle_moves_tokens_as_it_moves_money,
    a_correction_applies_only_to_what_was_read,
    a_correction_makes_a_counter_that_ends_with_its_period,
    a_counter_is_raised_whatever_it_is_by_then_and_never_lowered,
    a_budget_is_not_raised_by_what_it_holds,
    a_raise_makes_a_counter_that_ends_with_its_period,
    what_a_request_in_flight_holds_is_known_until_somebody_ends_it,
    a_clock_that_went_far_ahead_is_put_back_only_on_purpose,
)
