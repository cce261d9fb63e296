"""Instants as callers read them."""

from datetime import UTC, datetime


def instant_text(unix_ms: int) -> str:
    """Return an instant as ISO 8601 in UTC, to the second and never before it: `2026-11-21T08:00:00Z`."""
    at = datetime.fromtimestamp(-(-unix_ms // 1000), UTC)
    # Not strftime: it costs four times as much, and device calls carry an instant each.
    return f"{at.isoformat()[:19]}Z"
