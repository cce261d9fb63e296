"""Instants as callers read them."""

from datetime import UTC, datetime
from functools import lru_cache


def instant_text(unix_ms: int) -> str:
    """Return an instant as ISO 8601 in UTC, to the second and never before it: `2026-11-21T08:00:00Z`."""
    return _text(-(-unix_ms // 1000))


# The ends of days: every call by device carries one, the same for all of a time zone.
@lru_cache(maxsize=256)
def _text(unix_seconds: int) -> str:
    return f"{datetime.fromtimestamp(unix_seconds, UTC).isoformat()[:19]}Z"
