"""Everything that is set for one subject: its limits, what takes their place for a while, and which counters were reset.

A reset deletes nothing: the counter goes on under a new generation, which is part of its key and of the ledger's sums.
So generations only rise, and one that has risen is kept as long as its subject, whatever becomes of the limits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.domain.errors import InvalidError
from controlplane.domain.limits import (
    COUNTED,
    Identity,
    Limit,
    LimitUnit,
    LimitWindow,
    check_limits,
    check_window,
    merged,
    without,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporaryLimit:
    """Takes the place of the limit of its unit and window, whoever set that one, while it is before `until`."""

    limit: Limit
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReset:
    """How often a counter was reset: its generation, at least 1."""

    unit: LimitUnit
    window: LimitWindow
    reset_generation: int

    @property
    def identity(self) -> Identity:
        """A subject has at most one of each identity."""
        return self.unit, self.window


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectLimitSet:
    """What one subject has, each list in the order of units and windows; a change is a new value."""

    limits: tuple[Limit, ...] = ()
    temporary: tuple[TemporaryLimit, ...] = ()
    resets: tuple[CounterReset, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        return not (self.limits or self.temporary or self.resets)

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """Every limit that holds now or will hold again."""
        return (*self.limits, *(each.limit for each in self.temporary))

    def at(self, now: datetime) -> "SubjectLimitSet":
        """Return it without what has expired."""
        kept = tuple(each for each in self.temporary if now < each.until)
        return replace(self, temporary=kept)

    def with_limits(self, given: Iterable[Limit]) -> "SubjectLimitSet":
        """Return it with `given` in place of the limits of the same units and windows."""
        return replace(self, limits=merged(self.limits, given))

    def with_temporary(self, given: Iterable[TemporaryLimit]) -> "SubjectLimitSet":
        """Return it with `given` in place of the temporary limits of the same units and windows."""
        by_identity = {each.limit.identity: each for each in (*self.temporary, *given)}
        kept = tuple(by_identity[identity] for identity in sorted(by_identity))
        return replace(self, temporary=kept)

    def without(
        self, identities: Iterable[Identity] = (), *, temporary_only: bool = False
    ) -> "SubjectLimitSet":
        """Return it without the limits of these units and windows, or without any when none is named."""
        removed = set(identities) or {limit.identity for limit in self.all_limits}
        kept = tuple(each for each in self.temporary if each.limit.identity not in removed)
        limits = self.limits if temporary_only else without(self.limits, removed)
        return replace(self, limits=limits, temporary=kept)

    def with_reset(self, identities: Iterable[Identity] = ()) -> "SubjectLimitSet":
        """Return it with these counters in their next generation, or all when none is named."""
        generations = {reset.identity: reset.reset_generation for reset in self.resets}
        for identity in set(identities) or COUNTED:
            generations[identity] = self.generation_of(identity) + 1
        resets = tuple(
            CounterReset(unit=unit, window=window, reset_generation=generations[unit, window])
            for unit, window in sorted(generations)
        )
        return replace(self, resets=resets)

    def generation_of(self, identity: Identity) -> int:
        """Return a counter's generation: 0 until it is reset, then the highest that anything names."""
        named: tuple[CounterReset | Limit, ...] = (*self.resets, *self.all_limits)
        return max(
            (each.reset_generation for each in named if each.identity == identity), default=0
        )


def check_temporary(given: Sequence[TemporaryLimit], *, now: datetime, field: str) -> None:
    """Check each temporary limit, and that no two count the same.

    Raises:
        InvalidError: Names the field of the first that is wrong: `limits[2].limit.window`, `limits[2].until`.
    """
    check_limits([each.limit for each in given], field=field, within=".limit")
    for index, each in enumerate(given):
        if each.until <= now:
            raise InvalidError("it would be over already", field=f"{field}[{index}].until")


def check_resettable(identities: Iterable[Identity], *, field: str) -> None:
    """Check that there are such counters, and that they have something to forget.

    Raises:
        InvalidError: Names the first that is wrong: `limits[2].window`, or `limits[2].unit` for requests in flight.
    """
    for index, (unit, window) in enumerate(identities):
        if unit is LimitUnit.PARALLEL:
            raise InvalidError(
                "requests in flight cannot be reset: they end by themselves",
                field=f"{field}[{index}].unit",
            )
        check_window(unit, window, field=f"{field}[{index}]")
