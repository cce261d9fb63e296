from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.durations import (
    duration_from_text,
    future_instant,
    instant_from_text,
    past_instant,
    text_of_ms,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("2s", timedelta(seconds=2)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(hours=24)),
        ("90d", timedelta(days=90)),
        ("2w", timedelta(weeks=2)),
        ("0s", timedelta(0)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    assert duration_from_text(text) == duration


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (1, "1ms"),
        (1000, "1s"),
        (1500, "1500ms"),
        (60_000, "1m"),
        (90_000, "90s"),
        (3_600_000, "1h"),
        (86_400_000, "1d"),
        (0, "0ms"),
    ],
)
def test_a_duration_is_shown_in_the_largest_unit_that_fits(duration_ms: int, text: str) -> None:
    assert text_of_ms(duration_ms) == text
    assert duration_from_text(text) == timedelta(milliseconds=duration_ms)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1.5h", "1 d", "1y", "999999999w", "1h30m", "\u0661s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is too long"):
        duration_from_text(text)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30:00", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_an_instant_without_a_zone_is_utc(text: str, instant: datetime) -> None:
    assert instant_from_text(text) == instant


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "0001-01-01T00:00:00+01:00"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date or time"):
        instant_from_text(text)


def test_a_duration_counts_back_or_ahead_from_now() -> None:
    assert past_instant("24h", NOW) == datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    assert future_instant("90d", NOW) == NOW + timedelta(days=90)


@given(
    st.integers(min_value=0, max_value=999_999_999),
    st.sampled_from(["ms", "s", "m", "h", "d", "w"]),
)
def test_any_duration_leads_to_an_instant_or_a_value_error(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    for read in (past_instant, future_instant):
        try:
            found = read(text, NOW)
        except ValueError:
            continue
        assert found.tzinfo is not None
