"""Durations such as `90d` and instants such as `2026-01-31`, as people write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d|w)", re.ASCII)


def duration_from_text(text: str) -> timedelta:
    """Return the duration that `500ms`, `2s`, `15m`, `24h`, `90d` or `2w` stands for.

    Raises:
        ValueError: Anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 2s, 15m, 24h or 90d")
    try:
        return int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None


def text_of_ms(duration_ms: int) -> str:
    """Return a duration as it is written, in the largest unit that fits: `500ms`, `1s`, `15m`, `1d`."""
    for name in ("d", "h", "m", "s"):
        whole, rest = divmod(duration_ms, _UNITS[name] // _UNITS["ms"])
        if whole and not rest:
            return f"{whole}{name}"
    return f"{duration_ms}ms"


def instant_from_text(text: str) -> datetime:
    """Return the instant of an ISO 8601 date or time; without a zone it is UTC, a date is its midnight.

    Raises:
        ValueError: Not ISO 8601.
    """
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None


def past_instant(text: str, now: datetime) -> datetime:
    """Return an instant, or the one that lies a duration before `now`.

    Raises:
        ValueError: Neither an instant nor a duration, or before year 1.
    """
    return _relative(text, now, forward=False)


def future_instant(text: str, now: datetime) -> datetime:
    """Return an instant, or the one that lies a duration after `now`.

    Raises:
        ValueError: Neither an instant nor a duration, or after year 9999.
    """
    return _relative(text, now, forward=True)


def _relative(text: str, now: datetime, *, forward: bool) -> datetime:
    if not _DURATION.fullmatch(text):
        return instant_from_text(text)
    distance = duration_from_text(text)
    try:
        return now + distance if forward else now - distance
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None
