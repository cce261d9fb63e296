"""Directed cases of money: hard and soft budgets, top-ups, and what is told at 80 and 100 percent."""

from typing import Final

from dataplane.domain.limiting import LayerPlan, Unit, Window, plan_of
from dataplane.limits.operations import Answer, Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import budget, layer, shadowed
from tests.limits.script_runner import NOON_MS

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000
HARD: Final = budget(100)
SOFT: Final = budget(100, Window.MONTH, is_hard=False)


def told(driver: Driver, answer: Answer, plan: LayerPlan) -> list[tuple[int, int, int, int, int]]:
    """Return (number of the layer, percent, capacity, settled, held) of each crossing."""
    assert answer[0] == Outcome.OK
    keys = [driver.counter_key(each) for each in plan.layers]
    return [(keys.index(key), *figures) for key, *figures in answer[1]]


def a_hard_budget_holds_the_upper_bound_and_a_soft_one_what_is_expected(driver: Driver) -> None:
    plan = plan_of([HARD, SOFT])
    assert driver.admit("a", plan, cost=60, expected=20)[3][::2] == [40, 80]
    assert driver.balances(plan) == [(0, 60), (0, 20)]
    denied = driver.admit("b", plan, cost=41, expected=10)
    assert denied[4:] == [1, 0, 0, 60]
    assert driver.admit("c", plan, cost=40, expected=80)[0] == Outcome.OK
    denied = driver.admit("d", plan, cost=0, expected=1)
    assert denied[4:] == [2, 0, 0, 100]
    assert driver.settle("a", cost=50)[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 40), (50, 80)]
    assert driver.release("c")[0] == Outcome.OK
    assert driver.balances(plan) == [(50, 0), (50, 0)]


def a_soft_budget_refuses_a_request_only_when_the_expected_is_larger_than_it(
    driver: Driver,
) -> None:
    plan = plan_of([SOFT])
    assert driver.admit("a", plan, cost=500, expected=101)[4:] == [1, 1, 0, 0]
    assert driver.admit("b", plan, cost=500, expected=100)[0] == Outcome.OK
    assert driver.release("b")[0] == Outcome.OK
    assert driver.admit("c", plan, cost=101)[4:] == [1, 1, 0, 0]


def a_reaped_request_is_charged_what_each_budget_held_or_what_its_record_says(
    driver: Driver,
) -> None:
    plan = plan_of([HARD, SOFT])
    assert driver.admit("a", plan, cost=60, expected=20)[0] == Outcome.OK
    assert driver.reap("a")[0] == Outcome.OK
    assert driver.balances(plan) == [(60, 0), (20, 0)]
    assert driver.settle("a", cost=30)[0] == Outcome.OK
    assert driver.balances(plan) == [(30, 0), (30, 0)]

    assert driver.admit("b", plan, cost=60, expected=20)[0] == Outcome.OK
    assert driver.reap("b", charged=40)[0] == Outcome.OK
    assert driver.balances(plan) == [(70, 0), (70, 0)]
    assert driver.settle("b", cost=10)[0] == Outcome.OK
    assert driver.balances(plan) == [(40, 0), (40, 0)]


def what_came_in_excess_of_a_soft_budget_is_spent_and_then_nothing_more_passes(
    driver: Driver,
) -> None:
    plan = plan_of([SOFT])
    assert driver.admit("a", plan, cost=200, expected=90)[0] == Outcome.OK
    assert driver.settle("a", cost=130)[0] == Outcome.OK
    assert driver.balances(plan) == [(130, 0)]
    denied = driver.admit("b", plan, cost=1, expected=1)
    assert (denied[0], denied[3][0], denied[4:]) == (Outcome.DENY, 0, [1, 0, 130, 0])


def a_top_up_goes_exactly_to_the_budget(driver: Driver) -> None:
    plan = plan_of([HARD, SOFT])
    assert driver.admit("a", plan, cost=50, expected=40)[0] == Outcome.OK
    assert driver.admit("b", plan, cost=50, expected=50)[0] == Outcome.OK
    assert driver.extend("a", 51) == [Outcome.DENY]
    assert driver.balances(plan) == [(0, 100), (0, 90)]
    assert driver.extend("a", 50) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 100), (0, 100)]
    assert driver.extend("a", 50) == [Outcome.OK]
    assert driver.extend("a", 45) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 100), (0, 100)]
    assert driver.extend("b", 51) == [Outcome.DENY]
    assert driver.settle("a", cost=45)[0] == Outcome.OK
    assert driver.balances(plan) == [(45, 50), (45, 50)]
    assert driver.extend("b", 55) == [Outcome.OK]
    assert driver.balances(plan) == [(45, 50), (45, 55)]
    assert driver.release("b")[0] == Outcome.OK
    assert driver.balances(plan) == [(45, 0), (45, 0)]


def a_top_up_raises_all_soft_budgets_or_none(driver: Driver) -> None:
    narrow, wide = budget(50, is_hard=False), budget(500, Window.MONTH, is_hard=False)
    plan = plan_of([narrow, wide, shadowed(budget(10, Window.TOTAL, is_hard=False))])
    assert driver.admit("a", plan, cost=60, expected=40)[0] == Outcome.OK
    assert driver.extend("a", 51) == [Outcome.DENY]
    assert driver.balances(plan) == [(0, 40)] * 3
    assert driver.extend("a", 50) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 50)] * 3


def a_top_up_counts_in_the_period_of_its_reservation(driver: Driver) -> None:
    plan = plan_of([budget(100, is_hard=False)])
    driver.set_clock(MIDNIGHT_MS - 1)
    assert driver.admit("a", plan, expected=80)[0] == Outcome.OK
    driver.tick(1)
    assert driver.admit("b", plan, expected=80)[0] == Outcome.OK
    assert driver.extend("a", 90) == [Outcome.OK]
    assert driver.balances(plan) == [(0, 80)]
    assert driver.extend("a", 101) == [Outcome.DENY]


def nothing_that_is_over_can_be_topped_up(driver: Driver) -> None:
    plan = plan_of([SOFT])
    for number, end in enumerate((driver.settle, driver.release, driver.reap)):
        request_id = f"a{number}"
        assert driver.admit(request_id, plan, cost=5, expected=5)[0] == Outcome.OK
        assert end(request_id)[0] == Outcome.OK
        before = driver.balances(plan)
        assert driver.extend(request_id, 90) == [Outcome.GONE]
        assert driver.balances(plan) == before


def eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there(driver: Driver) -> None:
    plan = plan_of([HARD])
    for request_id, cost, news in (
        ("a", 79, []),
        ("b", 1, [(0, 80, 100, 80, 0)]),
        ("c", 0, []),
        ("d", 19, []),
        ("e", 1, [(0, 100, 100, 100, 0)]),
        ("f", 0, []),
    ):
        assert driver.admit(request_id, plan, cost=cost)[0] == Outcome.OK
        assert told(driver, driver.settle(request_id, cost=cost), plan) == news, request_id


def a_crossing_counts_what_is_held_and_is_told_by_the_settle_that_sees_it(driver: Driver) -> None:
    plan = plan_of([HARD])
    assert driver.admit("a", plan, cost=50)[0] == Outcome.OK
    assert driver.admit("b", plan, cost=30)[0] == Outcome.OK
    assert told(driver, driver.settle("a", cost=49), plan) == []
    assert driver.admit("c", plan, cost=21)[0] == Outcome.OK
    news = told(driver, driver.settle("b", cost=30), plan)
    assert news == [(0, 80, 100, 79, 21), (0, 100, 100, 79, 21)]
    assert told(driver, driver.settle("c", cost=21), plan) == []


def a_crossing_is_told_for_each_budget_and_each_period(driver: Driver) -> None:
    plan = plan_of([HARD, budget(1_000, Window.MONTH), layer(Unit.TOKENS, Window.DAY, 1_000)])
    assert driver.admit("a", plan, cost=80)[0] == Outcome.OK
    assert told(driver, driver.settle("a", cost=80), plan) == [(1, 80, 100, 80, 0)]
    driver.set_clock(MIDNIGHT_MS)
    assert driver.admit("b", plan, cost=80)[0] == Outcome.OK
    assert told(driver, driver.settle("b", cost=80), plan) == [(1, 80, 100, 80, 0)]


def a_reaped_request_and_a_correction_tell_of_a_crossing_too(driver: Driver) -> None:
    plan = plan_of([HARD])
    assert driver.admit("a", plan, cost=85)[0] == Outcome.OK
    assert told(driver, driver.reap("a"), plan) == [(0, 80, 100, 85, 0)]
    assert told(driver, driver.settle("a", cost=10), plan) == []
    assert driver.admit("b", plan, cost=75)[0] == Outcome.OK
    assert told(driver, driver.settle("b", cost=75), plan) == []
    corrected = driver.correct(HARD, (85, 0), (100, 0))
    assert told(driver, corrected, plan) == [(0, 100, 100, 100, 0)]
    assert told(driver, driver.correct(HARD, (100, 0), (101, 0)), plan) == []


def a_raised_budget_resumes_at_once(driver: Driver) -> None:
    assert driver.admit("a", plan_of([HARD]), cost=100)[0] == Outcome.OK
    assert driver.admit("b", plan_of([HARD]), cost=1)[0] == Outcome.DENY
    raised = plan_of([budget(200)])
    assert driver.admit("c", raised, cost=100)[0] == Outcome.OK
    assert driver.admit("d", raised, cost=1)[0] == Outcome.DENY


CASES: Final[tuple[Case, ...]] = (
    a_hard_budget_holds_the_upper_bound_and_a_soft_one_what_is_expected,
    a_soft_budget_refuses_a_request_only_when_the_expected_is_larger_than_it,
    a_reaped_request_is_charged_what_each_budget_held_or_what_its_record_says,
    what_came_in_excess_of_a_soft_budget_is_spent_and_then_nothing_more_passes,
    a_top_up_goes_exactly_to_the_budget,
    a_top_up_raises_all_soft_budgets_or_none,
    a_top_up_counts_in_the_period_of_its_reservation,
    nothing_that_is_over_can_be_topped_up,
    eighty_and_a_hundred_percent_are_told_once_each_and_exactly_there,
    a_crossing_counts_what_is_held_and_is_told_by_the_settle_that_sees_it,
    a_crossing_is_told_for_each_budget_and_each_period,
    a_reaped_request_and_a_correction_tell_of_a_crossing_too,
    a_raised_budget_resumes_at_once,
)
