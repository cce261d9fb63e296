"""Days and months of a time zone as periods of limiter time.

A period begins at the first local midnight of its date and ends where the next
one begins, so periods touch, never overlap, and a day has 23, 24 or 25 hours.
A date that a zone skipped (Samoa, 30 December 2011) has no period, and an hour
that a zone repeats across midnight stays in the day that has begun.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from dataplane.domain.limiting import Window

# End of a period that never ends; the script knows the same number.
FOREVER_MS: Final = 2**53


@dataclass(frozen=True, slots=True)
class Periods:
    """The period of an instant and the one after it, in Unix milliseconds.

    The next one travels along because the script decides, by the clock of Redis,
    which of the two a request falls into.
    """

    period_id: str
    start_ms: int
    end_ms: int
    next_id: str
    next_end_ms: int

    def covers(self, now_ms: int) -> bool:
        """Tell whether `now_ms` lies in the first of the two periods."""
        return self.start_ms <= now_ms < self.end_ms


_TOTAL: Final = Periods("total", 0, FOREVER_MS, "total", FOREVER_MS)


def periods_at(window: Window, time_zone: str, now_ms: int) -> Periods:
    """Return the period of `now_ms` and its successor.

    Args:
        window: `DAY`, `MONTH` or `TOTAL`.
        time_zone: IANA name.
        now_ms: Unix milliseconds, by the clock of Redis.

    Raises:
        ValueError: `window` has no periods.
        zoneinfo.ZoneInfoNotFoundError: There is no such zone.
    """
    following: Callable[[date], date]
    match window:
        case Window.DAY:
            following, form = _next_day, "%Y%m%d"
        case Window.MONTH:
            following, form = _next_month, "%Y%m"
        case Window.TOTAL:
            return _TOTAL
        case _:
            raise ValueError(f"{window} is not a calendar period")
    zone = ZoneInfo(time_zone)
    today = datetime.fromtimestamp(now_ms / 1000, tz=UTC).astimezone(zone).date()
    first = today.replace(day=1) if window is Window.MONTH else today
    current, end_ms = _first_ending_after(now_ms, first, following, zone)
    successor, next_end_ms = _first_ending_after(end_ms, following(current), following, zone)
    return Periods(
        period_id=current.strftime(form),
        start_ms=_midnight_ms(current, zone),
        end_ms=end_ms,
        next_id=successor.strftime(form),
        next_end_ms=next_end_ms,
    )


class Calendar:
    """Remembers the periods of each (window, time zone) until they end."""

    def __init__(self) -> None:
        self._periods: dict[tuple[Window, str], Periods] = {}

    def at(self, window: Window, time_zone: str, now_ms: int) -> Periods:
        """Return `periods_at(...)`, computed once per period.

        Raises:
            ValueError: `window` has no periods.
            zoneinfo.ZoneInfoNotFoundError: There is no such zone.
        """
        known = self._periods.get((window, time_zone))
        if known is not None and known.covers(now_ms):
            return known
        fresh = periods_at(window, time_zone, now_ms)
        self._periods[window, time_zone] = fresh
        return fresh


def _first_ending_after(
    instant_ms: int, first: date, following: Callable[[date], date], zone: ZoneInfo
) -> tuple[date, int]:
    """Return the first period from `first` on that ends after `instant_ms`, and its end."""
    current = first
    end_ms = _midnight_ms(following(current), zone)
    while end_ms <= instant_ms:
        current = following(current)
        end_ms = _midnight_ms(following(current), zone)
    return current, end_ms


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    # fold=0: the first of two midnights; in a gap, the instant of the jump itself.
    return int(datetime.combine(day, time(0), tzinfo=zone).timestamp() * 1000)


def _next_day(day: date) -> date:
    return day + timedelta(days=1)


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)
