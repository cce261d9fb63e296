"""What makes limits valid, and how a subject's limits change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from controlplane.domain.errors import InvalidError, PreconditionError

# Counters are compared in doubles, exact to 2^53: about 9 million USD.
MAX_SPEND_NANOUSD: Final = 9_000_000_000_000_000
MAX_COUNT: Final = 1_000_000_000_000_000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One layer of a subject; `capacity` is in the unit, nano-USD for spend."""

    unit: LimitUnit
    window: LimitWindow
    capacity: int = 0
    unlimited: bool = False
    soft: bool = False
    shadow: bool = False
    reset_generation: int = 0

    @property
    def identity(self) -> tuple[LimitUnit, LimitWindow]:
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
    },
    LimitUnit.TOKENS: {LimitWindow.MINUTE, LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL},
    LimitUnit.SPEND: {LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL},
    LimitUnit.PARALLEL: {LimitWindow.UNSPECIFIED},
}


def check_limits(limits: Sequence[Limit], *, field: str) -> None:
    """Check each limit, and that no two count the same.

    Raises:
        InvalidError: Names the field of the first that is wrong: `limits[2].window`.
    """
    seen = set()
    for index, limit in enumerate(limits):
        _check_limit(limit, f"{field}[{index}]")
        if limit.identity in seen:
            raise InvalidError("a second limit of this unit and window", field=f"{field}[{index}]")
        seen.add(limit.identity)


def _check_limit(limit: Limit, field: str) -> None:
    if limit.window not in _WINDOWS[limit.unit]:
        unit, window = limit.unit.name.lower(), limit.window.name.lower()
        raise InvalidError(f"{unit} are not limited by {window} window", field=f"{field}.window")
    bound = MAX_SPEND_NANOUSD if limit.unit is LimitUnit.SPEND else MAX_COUNT
    if not 0 <= limit.capacity <= bound:
        raise InvalidError(
            f"a capacity is at least 0 and at most {bound}", field=f"{field}.capacity"
        )
    if limit.unlimited and limit.capacity:
        raise InvalidError("an unlimited limit has no capacity", field=f"{field}.capacity")
    if limit.soft and limit.unit is not LimitUnit.SPEND:
        raise InvalidError("only money can be limited softly", field=f"{field}.soft")


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


def without(
    current: Iterable[Limit], identities: Iterable[tuple[LimitUnit, LimitWindow]]
) -> tuple[Limit, ...]:
    """Return `current` without the limits of these units and windows."""
    removed = set(identities)
    return tuple(limit for limit in current if limit.identity not in removed)
