"""What makes limits valid, and how a subject's limits change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from controlplane.domain.errors import InvalidError, PreconditionError

# Counters are compared in doubles, exact to 2^53: about 9 million USD.
MAX_SPEND_NANOUSD: Final = 9_000_000_000_000_000
MAX_COUNT: Final = 1_000_000_000_000_000
# Of rates: longer than a day is a quota; below 10 µs the rounding to whole microseconds would be felt.
MAX_EVERY_MS: Final = 86_400_000
MAX_BURST: Final = 1_000_000_000
LEAST_INTERVAL_US: Final = 10
# A counter runs ahead of the clock by at most its burst, and both together stay exact in a double.
MAX_BURST_US: Final = 100 * 366 * 86_400_000_000


class LimitUnit(IntEnum):
    """What a limit counts; the numbers of the contract."""

    REQUESTS = 1
    TOKENS = 2
    SPEND = 3
    PARALLEL = 4


class LimitWindow(IntEnum):
    """Over which time; the numbers of the contract."""

    UNSPECIFIED = 0
    MINUTE = 1
    DAY = 2
    MONTH = 3
    TOTAL = 4
    RATE = 5


Identity = tuple[LimitUnit, LimitWindow]
"""What a limit counts, and over which time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One layer of a subject; `capacity` is in the unit, nano-USD for spend.

    A rate lets `capacity` pass every `every_ms` milliseconds, evenly, and at most `burst` at once (0: `capacity`).
    """

    unit: LimitUnit
    window: LimitWindow
    capacity: int = 0
    unlimited: bool = False
    soft: bool = False
    shadow: bool = False
    reset_generation: int = 0
    every_ms: int = 0
    burst: int = 0

    @property
    def identity(self) -> Identity:
        """A subject has at most one limit of each identity."""
        return self.unit, self.window

    @property
    def is_hard_budget(self) -> bool:
        """Say whether this is a money cap that must never be passed."""
        refuses = not (self.unlimited or self.shadow)
        return self.unit is LimitUnit.SPEND and refuses and not self.soft


_WINDOWS: Final = {
    LimitUnit.REQUESTS: {
        LimitWindow.MINUTE,
        LimitWindow.DAY,
        LimitWindow.MONTH,
        LimitWindow.TOTAL,
        LimitWindow.RATE,
    },
    LimitUnit.TOKENS: {LimitWindow.MINUTE, LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL},
    LimitUnit.SPEND: {LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL},
    LimitUnit.PARALLEL: {LimitWindow.UNSPECIFIED},
}


COUNTED: Final = tuple(
    (unit, window) for unit, windows in _WINDOWS.items() for window in sorted(windows) if window
)
"""Every unit and window whose counter has a memory, which an administrator may reset; requests in flight have none."""


def check_limits(limits: Sequence[Limit], *, field: str, within: str = "") -> None:
    """Check each limit, and that no two count the same.

    Args:
        limits: What is set together.
        field: The list that holds them, in the request.
        within: Where a limit is in an item of that list; empty: it is the item.

    Raises:
        InvalidError: Names the field of the first that is wrong: `limits[2].window`.
    """
    seen = set()
    for index, limit in enumerate(limits):
        _check_limit(limit, f"{field}[{index}]{within}")
        if limit.identity in seen:
            raise InvalidError("a second limit of this unit and window", field=f"{field}[{index}]")
        seen.add(limit.identity)


def check_window(unit: LimitUnit, window: LimitWindow, *, field: str) -> None:
    """Check that a unit is limited over that time at all.

    Raises:
        InvalidError: It is not; names the window below `field`.
    """
    if window not in _WINDOWS[unit]:
        raise InvalidError(
            f"{unit.name.lower()} are not limited by {window.name.lower()} window",
            field=f"{field}.window",
        )


def _check_limit(limit: Limit, field: str) -> None:
    check_window(limit.unit, limit.window, field=field)
    bound = MAX_SPEND_NANOUSD if limit.unit is LimitUnit.SPEND else MAX_COUNT
    if not 0 <= limit.capacity <= bound:
        raise InvalidError(
            f"a capacity is at least 0 and at most {bound}", field=f"{field}.capacity"
        )
    if limit.unlimited and limit.capacity:
        raise InvalidError("an unlimited limit has no capacity", field=f"{field}.capacity")
    if limit.soft and limit.unit is not LimitUnit.SPEND:
        raise InvalidError("only money can be limited softly", field=f"{field}.soft")
    if limit.window is LimitWindow.RATE:
        _check_rate(limit, field)
    elif limit.every_ms or limit.burst:
        wrong = "every_ms" if limit.every_ms else "burst"
        raise InvalidError("only a rate has a time and a burst", field=f"{field}.{wrong}")


def _check_rate(limit: Limit, field: str) -> None:
    # What is unlimited needs no time.
    if not (0 if limit.unlimited else 1) <= limit.every_ms <= MAX_EVERY_MS:
        raise InvalidError(
            f"the time of a rate is 1 to {MAX_EVERY_MS} ms", field=f"{field}.every_ms"
        )
    if not 0 <= limit.burst <= MAX_BURST:
        raise InvalidError(f"a burst is at most {MAX_BURST}", field=f"{field}.burst")
    if limit.unlimited and limit.burst:
        raise InvalidError("an unlimited limit has no burst", field=f"{field}.burst")
    if limit.every_ms * 1000 < LEAST_INTERVAL_US * limit.capacity:
        raise InvalidError(
            f"a rate lets at most one request pass in {LEAST_INTERVAL_US} µs",
            field=f"{field}.capacity",
        )
    if limit.burst * limit.every_ms * 1000 > MAX_BURST_US * max(1, limit.capacity):
        raise InvalidError(
            "it would take more than 100 years until so many may come at once again",
            field=f"{field}.burst",
        )


def check_fail_open(*, fails_open: bool, limits: Iterable[Limit]) -> None:
    """Check that an organization with a hard budget of its own refuses while counters cannot be read.

    Raises:
        PreconditionError: It would admit, and could overshoot its budget.
    """
    if fails_open and any(limit.is_hard_budget for limit in limits):
        raise PreconditionError(
            "an organization with a hard budget cannot admit requests while limits are unavailable",
            field="on_limits_unavailable",
        )


def merged(current: Iterable[Limit], given: Iterable[Limit]) -> tuple[Limit, ...]:
    """Return `current` with `given` in place of those of the same unit and window, in a fixed order.

    Reset generations stay: an administrator's reset changes them, setting a limit does not.
    """
    by_identity = {limit.identity: limit for limit in current}
    for limit in given:
        before = by_identity.get(limit.identity)
        generation = before.reset_generation if before else 0
        by_identity[limit.identity] = replace(limit, reset_generation=generation)
    return tuple(by_identity[identity] for identity in sorted(by_identity))


def without(current: Iterable[Limit], identities: Iterable[Identity]) -> tuple[Limit, ...]:
    """Return `current` without the limits of these units and windows."""
    removed = set(identities)
    return tuple(limit for limit in current if limit.identity not in removed)
