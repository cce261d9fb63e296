from dataclasses import replace

import pytest
from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.errors import InvalidError, PreconditionError
from controlplane.domain.limits import (
    MAX_SPEND_NANOUSD,
    Limit,
    LimitUnit,
    LimitWindow,
    check_fail_open,
    check_limits,
    merged,
    without,
)
from controlplane.domain.service import ServiceDefaults
from controlplane.store.subject_limits import limits_from_json, limits_to_json

REQUESTS, TOKENS, SPEND, PARALLEL = LimitUnit
NONE, MINUTE, DAY, MONTH, TOTAL, RATE = LimitWindow
ALLOWED = {
    *((unit, window) for unit in (REQUESTS, TOKENS) for window in (MINUTE, DAY, MONTH, TOTAL)),
    *((SPEND, window) for window in (DAY, MONTH, TOTAL)),
    (REQUESTS, RATE),
    (PARALLEL, NONE),
}
DAY_MS = 86_400_000


def limit(unit: LimitUnit, window: LimitWindow, capacity: int = 1) -> Limit:
    every_ms = 1000 if window is RATE else 0
    return Limit(unit=unit, window=window, capacity=capacity, every_ms=every_ms)


def rate(capacity: int, every_ms: int, burst: int = 0) -> Limit:
    return Limit(unit=REQUESTS, window=RATE, capacity=capacity, every_ms=every_ms, burst=burst)


@pytest.mark.parametrize("unit", LimitUnit)
@pytest.mark.parametrize("window", LimitWindow)
def test_each_unit_has_its_windows(unit: LimitUnit, window: LimitWindow) -> None:
    if (unit, window) in ALLOWED:
        check_limits([limit(unit, window)], field="limits")
    else:
        with pytest.raises(InvalidError) as caught:
            check_limits([limit(unit, window)], field="limits")
        assert caught.value.field == "limits[0].window"


def test_units_and_windows_are_those_of_the_contract() -> None:
    units = {name.removeprefix("LIMIT_UNIT_"): n for name, n in limits_pb2.LimitUnit.items() if n}
    windows = {name.removeprefix("LIMIT_WINDOW_"): n for name, n in limits_pb2.LimitWindow.items()}

    assert {unit.name: unit.value for unit in LimitUnit} == units
    assert {window.name: window.value for window in LimitWindow} == windows


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (limit(SPEND, DAY, MAX_SPEND_NANOUSD + 1), "limits[0].capacity"),
        (limit(TOKENS, DAY, 10**15 + 1), "limits[0].capacity"),
        (limit(TOKENS, DAY, -1), "limits[0].capacity"),
        (replace(limit(TOKENS, DAY), unlimited=True), "limits[0].capacity"),
        (replace(limit(TOKENS, DAY), soft=True), "limits[0].soft"),
        (replace(limit(REQUESTS, DAY), every_ms=1), "limits[0].every_ms"),
        (replace(limit(REQUESTS, DAY), burst=1), "limits[0].burst"),
        (rate(1, 0), "limits[0].every_ms"),
        (rate(1, DAY_MS + 1), "limits[0].every_ms"),
        (rate(1, 1, -1), "limits[0].burst"),
        (rate(1, 1, 1_000_000_001), "limits[0].burst"),
        (rate(101, 1), "limits[0].capacity"),
        (rate(100_001, 1000), "limits[0].capacity"),
        (rate(1, DAY_MS, 36_601), "limits[0].burst"),
        (replace(rate(0, 1, 2), unlimited=True), "limits[0].burst"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(wrong: Limit, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_limits([wrong], field="limits")

    assert caught.value.field == field


@pytest.mark.parametrize(
    "each",
    [
        rate(0, 1),
        rate(100, 1),
        rate(1, DAY_MS),
        rate(8_640_000_000, DAY_MS),
        rate(1, DAY_MS, 36_600),
        rate(10, 1000, 1_000_000_000),
        replace(rate(0, 0), unlimited=True),
        replace(rate(5, 1000), shadow=True),
    ],
)
def test_a_rate_lets_one_request_pass_every_10_microseconds_to_a_day(each: Limit) -> None:
    check_limits([each], field="limits")


def test_a_limit_within_an_item_of_a_list_is_named_with_its_place() -> None:
    with pytest.raises(InvalidError) as caught:
        check_limits([limit(TOKENS, RATE)], field="limits", within=".limit")

    assert caught.value.field == "limits[0].limit.window"


def test_the_largest_budget_and_zero_are_valid() -> None:
    check_limits([limit(SPEND, DAY, MAX_SPEND_NANOUSD), limit(TOKENS, DAY, 0)], field="limits")


def test_two_limits_of_one_unit_and_window_are_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        check_limits([limit(TOKENS, DAY), limit(TOKENS, DAY, 2)], field="limits")

    assert caught.value.field == "limits[1]"


@pytest.mark.parametrize(
    ("budget", "is_hard"),
    [
        (limit(SPEND, MONTH), True),
        (limit(SPEND, DAY, 0), True),
        (replace(limit(SPEND, MONTH), soft=True), False),
        (replace(limit(SPEND, MONTH), shadow=True), False),
        (replace(limit(SPEND, MONTH, 0), unlimited=True), False),
        (limit(TOKENS, MONTH), False),
    ],
)
def test_only_a_hard_budget_forbids_to_admit_without_counters(budget: Limit, is_hard: bool) -> None:
    check_fail_open(fails_open=False, limits=[budget])
    if is_hard:
        with pytest.raises(PreconditionError):
            check_fail_open(fails_open=True, limits=[budget])
    else:
        check_fail_open(fails_open=True, limits=[budget])


def test_setting_a_limit_keeps_the_others_and_the_reset_generation() -> None:
    current = [replace(limit(TOKENS, DAY, 5), reset_generation=3), limit(SPEND, DAY, 7)]

    after = merged(current, [limit(TOKENS, DAY, 6), limit(REQUESTS, DAY, 1)])

    assert after == (
        limit(REQUESTS, DAY, 1),
        replace(limit(TOKENS, DAY, 6), reset_generation=3),
        limit(SPEND, DAY, 7),
    )
    assert without(after, [(TOKENS, DAY), (TOKENS, MINUTE)]) == (after[0], after[2])


def test_limits_rest_as_what_the_contract_takes() -> None:
    given = (replace(limit(SPEND, MONTH, 9), soft=True, reset_generation=2),)

    rested = limits_to_json(given)

    assert limits_from_json(rested) == given
    assert limits_pb2.Limit(**rested[0]) == limits_pb2.Limit(
        unit=limits_pb2.LIMIT_UNIT_SPEND,
        window=limits_pb2.LIMIT_WINDOW_MONTH,
        capacity=9,
        soft=True,
        reset_generation=2,
    )


def test_a_limit_that_is_no_rate_rests_as_programs_of_before_rates_read_it() -> None:
    (lasting, every_second) = limits_to_json([limit(TOKENS, DAY, 5), rate(5, 1000, 9)])

    assert not {"every_ms", "burst"} & set(lasting)
    assert (every_second["every_ms"], every_second["burst"]) == (1000, 9)
    assert limits_from_json([every_second]) == (rate(5, 1000, 9),)


def test_settings_become_limits_and_none_becomes_nothing() -> None:
    defaults = ServiceDefaults(daily_budget_nanousd=50, default_daily_tokens=0)

    assert defaults.global_limits == (limit(SPEND, DAY, 50),)
    assert defaults.user_limits == (limit(TOKENS, DAY, 0),)
