import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.figures import (
    Figure,
    Report,
    as_json,
    as_line,
    as_markdown,
    per_unit_us,
    percentile,
    rounded,
)

REPORT = Report(
    date="2026-11-21 12:00 UTC",
    commit="0123abc",
    python="3.11.7",
    cpu="Some CPU",
    cores=2,
    placement="The data plane alone",
    seconds_per_phase=10.0,
    layers=21,
    figures=(
        Figure("requests/s", 1234.5, "/s", ceiling=10_000.0, note="others took 9% of its core"),
        Figure("streams/s", 71.0, "/s", ceiling=100.0),
    ),
)


@pytest.mark.parametrize(
    ("percent", "value"), [(1, 10), (20, 10), (21, 20), (50, 30), (99, 50), (100, 50)]
)
def test_a_percentile_is_the_nearest_rank(percent: float, value: int) -> None:
    assert percentile([10, 20, 30, 40, 50], percent) == value


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.integers(1, 100))
def test_a_percentile_is_reached_by_its_share_of_values(ordered: list[float], percent: int) -> None:
    value = percentile(ordered, percent)

    assert value in ordered
    assert sum(each <= value for each in ordered) * 100 >= percent * len(ordered)
    assert sum(each < value for each in ordered) * 100 < percent * len(ordered)


@pytest.mark.parametrize(("ordered", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing(ordered: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="a percentile needs"):
        percentile(ordered, percent)


@pytest.mark.parametrize(("value", "is_void"), [(70.0, False), (70.1, True), (100.0, True)])
def test_a_rate_above_70_percent_of_its_ceiling_is_void(value: float, is_void: bool) -> None:
    assert Figure("streams/s", value, "/s", ceiling=100.0).is_void is is_void


def test_a_figure_without_a_ceiling_is_never_void() -> None:
    assert not Figure("memory", 1e9, "MB").is_void


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12_345.6, "12,346"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (-12.34, "-12.3"),
        (0.0, "0.000"),
    ],
)
def test_values_are_shown_with_the_digits_that_count(value: float, text: str) -> None:
    assert rounded(value) == text


def test_a_line_says_why_a_figure_is_void() -> None:
    good, void = map(as_line, REPORT.figures)

    assert "void" not in good
    assert "(others took 9% of its core)" in good
    assert "(void: above 70 % of the harness's 100)" in void


def test_a_run_is_written_down_with_what_it_was_measured_on() -> None:
    text = as_markdown(REPORT)

    heading = text.splitlines()[0]
    for part in ("2026-11-21", "0123abc", "3.11.7", "Some CPU", "2 cores", "21 limit layers"):
        assert part in heading
    assert "| requests/s | 1,234 | /s | others took 9% of its core |" in text
    assert "| streams/s | 71.0 | /s | void: above 70 % of the harness's 100 |" in text


def test_json_says_which_figures_are_void() -> None:
    written = json.loads(as_json(REPORT))

    assert [each["void"] for each in written["figures"]] == [False, True]
    assert written["figures"][0]["value"] == 1234.5
    assert written["commit"] == "0123abc"


def test_cpu_time_is_divided_by_what_it_was_spent_on() -> None:
    assert per_unit_us(0.5, 1000) == pytest.approx(500.0)
    assert per_unit_us(0.5, 0) == 0.0
