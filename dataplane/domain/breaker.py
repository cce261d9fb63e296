"""A circuit breaker as a pure value: what a success or a failure turns it into.

States: CLOSED (calls pass) → enough failures in a short time → OPEN (calls fail at
once; one probe at a time is due every `probe_every_ms`) → enough good probes in a
row → CLOSED. A bad probe starts the row again.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final


class BreakerState(StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens and closes."""

    failures_to_open: int
    failure_window_ms: int
    probe_every_ms: int
    probes_to_close: int


# Limits page, section 11.
REDIS_RULE: Final = BreakerRule(
    failures_to_open=5, failure_window_ms=1000, probe_every_ms=500, probes_to_close=3
)


@dataclass(frozen=True, slots=True)
class Breaker:
    """A breaker at one instant; times are milliseconds of one monotonic clock."""

    rule: BreakerRule
    state: BreakerState = BreakerState.CLOSED
    failed_at_ms: tuple[int, ...] = ()
    good_probes: int = 0
    probe_at_ms: int = 0

    @property
    def is_open(self) -> bool:
        """Tell whether calls must fail at once."""
        return self.state is BreakerState.OPEN


def opened(breaker: Breaker, now_ms: int) -> Breaker:
    """Return the breaker as it is right after opening at `now_ms`."""
    return replace(
        breaker,
        state=BreakerState.OPEN,
        failed_at_ms=(),
        good_probes=0,
        probe_at_ms=now_ms + breaker.rule.probe_every_ms,
    )


def after_failure(breaker: Breaker, now_ms: int) -> Breaker:
    """Return the breaker after a failed call, or a failed probe, at `now_ms`."""
    if breaker.is_open:
        return opened(breaker, now_ms)
    horizon_ms = now_ms - breaker.rule.failure_window_ms
    recent = (*(at for at in breaker.failed_at_ms if at > horizon_ms), now_ms)
    if len(recent) >= breaker.rule.failures_to_open:
        return opened(breaker, now_ms)
    return replace(breaker, failed_at_ms=recent)


def after_success(breaker: Breaker, now_ms: int) -> Breaker:
    """Return the breaker after a good call, or a good probe, at `now_ms`."""
    if not breaker.is_open:
        return breaker
    good_probes = breaker.good_probes + 1
    if good_probes >= breaker.rule.probes_to_close:
        return Breaker(rule=breaker.rule)
    return replace(
        breaker,
        good_probes=good_probes,
        probe_at_ms=now_ms + breaker.rule.probe_every_ms,
    )
