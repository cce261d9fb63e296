"""Days and months of a time zone: their names, their ends, and their odd ones."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.limiting import Window
from dataplane.domain.periods import FOREVER_MS, Calendar, periods_at

HOUR_MS = 3_600_000
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Australia/Lord_Howe",
)


def ms(text: str, time_zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(time_zone)).timestamp() * 1000)


def test_a_day_is_named_by_its_date_and_ends_at_midnight() -> None:
    periods = periods_at(Window.DAY, "UTC", ms("2026-11-21T12:00"))

    assert (periods.period_id, periods.next_id) == ("20261121", "20261122")
    assert periods.start_ms == ms("2026-11-21T00:00")
    assert periods.end_ms == ms("2026-11-22T00:00")
    assert periods.next_end_ms == ms("2026-11-23T00:00")


def test_a_month_is_named_by_its_first_six_digits_and_crosses_the_year() -> None:
    periods = periods_at(Window.MONTH, "UTC", ms("2026-12-31T23:59:59.999"))

    assert (periods.period_id, periods.next_id) == ("202612", "202701")
    assert periods.end_ms == ms("2027-01-01T00:00")
    assert periods.next_end_ms == ms("2027-02-01T00:00")


def test_a_period_ends_to_the_millisecond() -> None:
    midnight_ms = ms("2026-11-22T00:00")

    assert periods_at(Window.DAY, "UTC", midnight_ms - 1).period_id == "20261121"
    assert periods_at(Window.DAY, "UTC", midnight_ms).period_id == "20261122"


def test_the_time_zone_decides_the_day() -> None:
    instant_ms = ms("2026-11-21T23:30")

    assert periods_at(Window.DAY, "Asia/Kathmandu", instant_ms).period_id == "20261122"
    assert periods_at(Window.DAY, "America/New_York", instant_ms).period_id == "20261121"


@pytest.mark.parametrize(
    ("time_zone", "noon", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", 25),
        ("Europe/Berlin", "2026-06-01T12:00", 24),
        # Clocks jump at midnight: the day begins at 01:00.
        ("America/Sao_Paulo", "2018-11-04T12:00", 23),
        # Clocks fall back at midnight: 23:00 comes twice.
        ("America/Sao_Paulo", "2018-02-17T12:00", 25),
    ],
)
def test_days_of_23_and_25_hours_are_legal(time_zone: str, noon: str, hours: int) -> None:
    periods = periods_at(Window.DAY, time_zone, ms(noon, time_zone))

    assert periods.end_ms - periods.start_ms == hours * HOUR_MS


def test_a_date_that_a_zone_skipped_has_no_period() -> None:
    periods = periods_at(Window.DAY, "Pacific/Apia", ms("2011-12-29T12:00", "Pacific/Apia"))

    assert (periods.period_id, periods.next_id) == ("20111229", "20111231")
    assert periods_at(Window.DAY, "Pacific/Apia", periods.end_ms).period_id == "20111231"


def test_a_total_never_ends() -> None:
    periods = periods_at(Window.TOTAL, "UTC", 0)

    assert (periods.period_id, periods.next_id) == ("total", "total")
    assert periods.end_ms == FOREVER_MS


def test_a_minute_is_not_a_calendar_period() -> None:
    with pytest.raises(ValueError, match="calendar"):
        periods_at(Window.MINUTE, "UTC", 0)


@given(
    now_ms=st.integers(ms("2001-01-01T00:00"), ms("2036-01-01T00:00")),
    time_zone=st.sampled_from(ZONES),
    window=st.sampled_from([Window.DAY, Window.MONTH]),
)
def test_periods_touch_and_never_overlap(now_ms: int, time_zone: str, window: Window) -> None:
    periods = periods_at(window, time_zone, now_ms)

    assert periods.start_ms <= now_ms < periods.end_ms < periods.next_end_ms
    assert periods_at(window, time_zone, periods.start_ms) == periods
    assert periods_at(window, time_zone, periods.end_ms - 1) == periods
    successor = periods_at(window, time_zone, periods.end_ms)
    assert (successor.period_id, successor.start_ms, successor.end_ms) == (
        periods.next_id,
        periods.end_ms,
        periods.next_end_ms,
    )
    local = datetime.fromtimestamp(periods.start_ms / 1000, tz=UTC).astimezone(ZoneInfo(time_zone))
    assert local.strftime("%Y%m%d").startswith(periods.period_id)


def test_a_calendar_remembers_a_period_until_it_ends_and_knows_the_way_back() -> None:
    calendar = Calendar()
    midnight_ms = ms("2026-11-22T00:00")

    first = calendar.at(Window.DAY, "UTC", midnight_ms - 2)
    assert calendar.at(Window.DAY, "UTC", midnight_ms - 1) is first
    assert calendar.at(Window.DAY, "UTC", midnight_ms).period_id == "20261122"
    assert calendar.at(Window.DAY, "UTC", midnight_ms - 1) == first
    assert calendar.at(Window.DAY, "Europe/Berlin", midnight_ms - 1).period_id == "20261122"
    assert calendar.at(Window.MONTH, "UTC", midnight_ms - 1).period_id == "202611"
