"""Directed cases of days and months: zones whose days are not 24 hours, and counting anew."""

from dataclasses import replace
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window, plan_of
from dataplane.limits.operations import Outcome
from tests.limits.driver import Case, Driver
from tests.limits.plans import layer

HOUR_MS: Final = 3_600_000
BERLIN: Final = "Europe/Berlin"


def midnight_ms(year: int, month: int, day: int, zone: str) -> int:
    return int(datetime(year, month, day, tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def in_zone(unit: Unit, window: Window, capacity: int, zone: str) -> Layer:
    return replace(layer(unit, window, capacity), time_zone=zone)


def fill_one_day(driver: Driver, begin_ms: int, hours: int) -> None:
    """Use the one request of a day in its first millisecond; the next passes in the next day's first."""
    plan = plan_of([in_zone(Unit.REQUESTS, Window.DAY, 1, BERLIN)])
    driver.set_clock(begin_ms - 1)
    assert driver.admit(f"{begin_ms} before", plan)[3] == [0, 1]
    driver.tick(1)
    assert driver.admit(f"{begin_ms} first", plan)[3] == [0, hours * HOUR_MS]
    driver.tick(hours * HOUR_MS - 1)
    assert driver.admit(f"{begin_ms} last", plan)[0] == Outcome.DENY
    driver.tick(1)
    assert driver.admit(f"{begin_ms} after", plan)[3] == [0, 24 * HOUR_MS]


def a_day_of_23_hours_is_one_day(driver: Driver) -> None:
    fill_one_day(driver, midnight_ms(2027, 3, 28, BERLIN), 23)


def a_day_of_25_hours_is_one_day(driver: Driver) -> None:
    fill_one_day(driver, midnight_ms(2027, 10, 31, BERLIN), 25)


def each_layer_has_the_midnights_of_its_zone(driver: Driver) -> None:
    berlin = in_zone(Unit.REQUESTS, Window.DAY, 1, BERLIN)
    world = layer(Unit.REQUESTS, Window.DAY, 1, SubjectKind.GLOBAL, "")
    plan = plan_of([berlin, world])
    utc_ms, berlin_ms = midnight_ms(2027, 6, 2, "UTC"), midnight_ms(2027, 6, 2, BERLIN)
    assert utc_ms - berlin_ms == 2 * HOUR_MS
    driver.set_clock(berlin_ms - 1)
    assert driver.admit("a", plan)[3] == [0, 2 * HOUR_MS + 1, 0, 1]
    driver.tick(1)
    denied = driver.admit("b", plan)
    assert (denied[0], denied[3], denied[4]) == (Outcome.DENY, [0, 2 * HOUR_MS, 1, 24 * HOUR_MS], 1)
    driver.set_clock(utc_ms)
    assert driver.admit("c", plan)[0] == Outcome.OK


def a_caller_of_yesterday_is_told_which_layers_are_in_the_next_period(driver: Driver) -> None:
    berlin = in_zone(Unit.REQUESTS, Window.DAY, 9, BERLIN)
    plan = plan_of([layer(Unit.SPEND, Window.MONTH, 9, SubjectKind.GLOBAL, ""), berlin])
    month_ms = midnight_ms(2027, 7, 1, BERLIN)
    early = driver.bind(plan, month_ms - 1)
    driver.set_clock(month_ms)
    answer = driver.admit("a", plan, bound=early)
    assert (answer[0], answer[2]) == (Outcome.OK, 2)
    driver.set_clock(month_ms + 2 * HOUR_MS)
    answer = driver.admit("b", plan, bound=early)
    assert (answer[0], answer[2]) == (Outcome.OK, 3)
    assert driver.balances(plan) == [(0, 1), (2, 0)]


def a_month_ends_at_its_last_midnight_and_a_total_never(driver: Driver) -> None:
    plan = plan_of(
        [
            in_zone(Unit.TOKENS, Window.MONTH, 9, BERLIN),
            layer(Unit.TOKENS, Window.TOTAL, 15, SubjectKind.KEY, "k_1"),
        ]
    )
    driver.set_clock(midnight_ms(2028, 3, 1, BERLIN) - 1)
    assert driver.admit("a", plan, tokens=9)[3] == [0, 1, 6, -1]
    driver.tick(1)
    assert driver.admit("b", plan, tokens=7)[4:6] == [2, 0]
    assert driver.admit("c", plan, tokens=6)[0] == Outcome.OK
    assert driver.balances(plan) == [(6, 0), (15, 0)]


def a_reset_counts_anew_and_leaves_the_old_count_to_its_requests(driver: Driver) -> None:
    before = [
        layer(Unit.TOKENS, Window.DAY, 100),
        layer(Unit.SPEND, Window.DAY, 100),
        layer(Unit.PARALLEL, Window.NONE, 1),
    ]
    after = [replace(each, reset_generation=1) for each in before]
    old, new = plan_of(before), plan_of(after)
    assert driver.admit("a", old, 90, 90)[0] == Outcome.OK
    assert driver.admit("b", old, 20, 20)[0] == Outcome.DENY
    assert driver.admit("c", new, 20, 20)[0] == Outcome.OK
    assert driver.settle("a", 70, 70)[0] == Outcome.OK
    assert driver.balances(old) == [(70, 0), (70, 0), (0, 0)]
    assert driver.balances(new) == [(20, 0), (0, 20), (1, 0)]


CASES: Final[tuple[Case, ...]] = (
    a_day_of_23_hours_is_one_day,
    a_day_of_25_hours_is_one_day,
    each_layer_has_the_midnights_of_its_zone,
    a_caller_of_yesterday_is_told_which_layers_are_in_the_next_period,
    a_month_ends_at_its_last_midnight_and_a_total_never,
    a_reset_counts_anew_and_leaves_the_old_count_to_its_requests,
)
