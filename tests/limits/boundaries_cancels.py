"""Directed cases of admissions that are undone, because another part of the request was refused."""

from typing import Final

from dataplane.domain.limiting import Unit, Window, plan_of
from dataplane.limits.operations import Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS, budget, layer, rate
from tests.limits.script_runner import NOON_MS


def an_admission_that_is_undone_leaves_nothing_behind(driver: Driver) -> None:
    plan = plan_of(
        [
            rate(10, 60_000, burst=3),
            layer(Unit.REQUESTS, Window.MINUTE, 9),
            layer(Unit.TOKENS, Window.MINUTE, 9),
            layer(Unit.REQUESTS, Window.DAY, 9),
            layer(Unit.TOKENS, Window.DAY, 9),
            budget(9),
            layer(Unit.PARALLEL, Window.NONE, 9),
        ]
    )
    assert driver.admit("a", plan, 5, 5)[0] == Outcome.OK
    driver.tick(1)
    assert driver.cancel("a", NOON_MS) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 0)] * 7
    assert (driver.reservations(), driver.leases()) == (set(), {})
    assert driver.cancel("a", NOON_MS) == [Outcome.GONE]
    assert driver.balances(plan) == [(0, 0)] * 7


def an_admission_that_is_undone_may_be_asked_for_again(driver: Driver) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.MINUTE, 1), budget(9)])
    assert driver.admit("a", plan, cost=9)[0] == Outcome.OK
    assert driver.cancel("a", NOON_MS) == [Outcome.OK]
    driver.tick(1)
    assert driver.admit("a", plan, cost=9)[0] == Outcome.OK
    # What was meant for the first admission does not undo the second.
    assert driver.cancel("a", NOON_MS) == [Outcome.GONE]
    assert driver.balances(plan) == [(1, 0), (0, 9)]


def an_admission_is_undone_in_the_slot_and_period_that_counted_it(driver: Driver) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.MINUTE, 9), layer(Unit.REQUESTS, Window.DAY, 9)])
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(SLOT_MS)
    assert driver.admit("b", plan)[0] == Outcome.OK
    assert driver.cancel("a", NOON_MS) == [Outcome.OK]
    assert driver.balances(plan) == [(1, 0), (1, 0)]
    driver.set_clock(NOON_MS + SLOT_MS + WINDOW_MS + SLOT_MS - 1)
    assert driver.balances(plan) == [(1, 0), (1, 0)]
    driver.tick(1)
    assert driver.admit("c", plan)[0] == Outcome.OK
    assert driver.cancel("b", NOON_MS + SLOT_MS) == [Outcome.OK]
    assert driver.balances(plan) == [(1, 0), (1, 0)]


def nothing_but_a_held_admission_is_undone(driver: Driver) -> None:
    plan = plan_of([layer(Unit.REQUESTS, Window.MINUTE, 9), budget(99)])
    for number, end in enumerate((driver.settle, driver.release, driver.reap)):
        request_id = f"a{number}"
        assert driver.admit(request_id, plan)[0] == Outcome.OK
        assert end(request_id)[0] == Outcome.OK
        before = driver.balances(plan)
        assert driver.cancel(request_id, NOON_MS) == [Outcome.GONE]
        assert driver.balances(plan) == before
    assert driver.admit("b", plan)[0] == Outcome.OK
    assert driver.open_epoch("second") == [Outcome.OK]
    before = driver.balances(plan)
    assert driver.cancel("b", NOON_MS) == [Outcome.GONE]
    assert driver.balances(plan) == before


def a_rate_takes_back_an_admission_as_if_it_had_not_come(driver: Driver) -> None:
    plan = plan_of([rate(10, 60_000, burst=3)])
    for request_id in ("a", "b", "c"):
        assert driver.admit(request_id, plan)[0] == Outcome.OK
    assert driver.cancel("b", NOON_MS) == [Outcome.OK]
    assert (driver.balances(plan), driver.resets(plan)) == ([(2, 0)], [NOON_MS + 12_000])
    assert driver.admit("d", plan)[0] == Outcome.OK
    assert driver.admit("e", plan)[0] == Outcome.DENY


def a_rate_that_an_undone_admission_made_busy_gives_no_time_away(driver: Driver) -> None:
    # Without `a`, `b` would have found the rate idle: 5 s that nobody had used are nobody's.
    plan = plan_of([rate(10, 60_000, burst=2)])
    assert driver.admit("a", plan)[0] == Outcome.OK
    driver.tick(5_000)
    assert driver.admit("b", plan)[0] == Outcome.OK
    driver.tick(500)
    assert driver.cancel("a", NOON_MS) == [Outcome.OK]
    passed = [driver.admit("c", plan)[0]]
    driver.tick(500)
    passed.append(driver.admit("d", plan)[0])
    # In one second two at once may pass, and none is due: `b` is one of the two.
    assert passed.count(Outcome.OK) <= 1


CASES: Final[tuple[Case, ...]] = (
    an_admission_that_is_undone_leaves_nothing_behind,
    an_admission_that_is_undone_may_be_asked_for_again,
    an_admission_is_undone_in_the_slot_and_period_that_counted_it,
    nothing_but_a_held_admission_is_undone,
    a_rate_takes_back_an_admission_as_if_it_had_not_come,
    a_rate_that_an_undone_admission_made_busy_gives_no_time_away,
)
