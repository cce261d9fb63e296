"""Which budgets hold for a subject, and in which period they count."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.domain.budgets import budgets_at
from controlplane.domain.counters import period_at, window_of
from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.subject_limits import CounterReset, SubjectLimitSet, TemporaryLimit

NOW = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
DAY, MONTH, TOTAL = LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL


def budget(window: LimitWindow, capacity: int, **values: Any) -> Limit:
    return Limit(unit=LimitUnit.SPEND, window=window, capacity=capacity, **values)


def until(limit: Limit, after: timedelta) -> TemporaryLimit:
    return TemporaryLimit(limit=limit, until=NOW + after)


def capacities(own: SubjectLimitSet, *defaults: Limit) -> dict[LimitWindow, int]:
    return {each.window: each.capacity_nanousd for each in budgets_at(NOW, own, defaults)}


def test_a_temporary_budget_holds_before_the_subjects_own_and_that_before_the_default() -> None:
    own = SubjectLimitSet(
        limits=(budget(MONTH, 20), budget(TOTAL, 200)),
        temporary=(
            until(budget(MONTH, 3), timedelta(microseconds=1)),
            until(budget(TOTAL, 4), timedelta(0)),
        ),
    )

    assert capacities(own, budget(DAY, 100), budget(MONTH, 1_000)) == {
        DAY: 100,
        MONTH: 3,
        TOTAL: 200,
    }


def test_only_money_is_a_budget_and_who_is_unlimited_has_none() -> None:
    tokens = Limit(unit=LimitUnit.TOKENS, window=MONTH, capacity=5)
    own = SubjectLimitSet(limits=(tokens, budget(DAY, 0, unlimited=True)))

    assert capacities(own, budget(DAY, 7)) == {}


def test_of_several_defaults_the_last_counts() -> None:
    assert capacities(SubjectLimitSet(), budget(DAY, 7), budget(DAY, 8)) == {DAY: 8}


def test_a_budget_says_until_when_it_holds_and_in_which_generation_it_counts() -> None:
    reset = CounterReset(unit=LimitUnit.SPEND, window=MONTH, reset_generation=3)
    own = SubjectLimitSet(
        temporary=(until(budget(MONTH, 3, soft=True), timedelta(days=1)),), resets=(reset,)
    )

    month, total = budgets_at(NOW, own, [budget(MONTH, 9), budget(TOTAL, 9, reset_generation=2)])

    assert (month.temporary_until, month.reset_generation) == (NOW + timedelta(days=1), 3)
    assert (month.soft, month.shadow) == (True, False)
    assert (total.temporary_until, total.reset_generation) == (None, 2)


@pytest.mark.parametrize(
    ("window", "time_zone", "period_id"),
    [
        (DAY, "", "20261130"),
        (DAY, "Europe/Berlin", "20261201"),
        (MONTH, "Europe/Berlin", "202612"),
        (MONTH, "America/New_York", "202611"),
        (TOTAL, "Europe/Berlin", "total"),
    ],
)
def test_a_period_is_that_of_the_time_zone(
    window: LimitWindow, time_zone: str, period_id: str
) -> None:
    assert period_at(window, time_zone, NOW) == period_id
    assert window_of(period_id) is window


@pytest.mark.parametrize("window", [LimitWindow.MINUTE, LimitWindow.RATE, LimitWindow.UNSPECIFIED])
def test_other_windows_have_no_periods(window: LimitWindow) -> None:
    with pytest.raises(ValueError, match="not a calendar period"):
        period_at(window, "", NOW)


@pytest.mark.parametrize(
    "text", ["", "2026", "2026112", "2026-11-21", "٢٠٢٦١١", "Total", "202611 "]
)
def test_what_is_no_period_has_no_window(text: str) -> None:
    assert window_of(text) is None
