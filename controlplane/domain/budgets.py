"""Which budgets hold for a subject: limits of money, whoever set them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.subject_limits import SubjectLimitSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit of money that holds now; `temporary_until` is None unless it is one that expires."""

    window: LimitWindow
    capacity_nanousd: int
    soft: bool
    shadow: bool
    temporary_until: datetime | None
    reset_generation: int


def budgets_at(
    now: datetime, own: SubjectLimitSet, defaults: Iterable[Limit] = ()
) -> tuple[Budget, ...]:
    """Return the budgets that hold at `now`, by window: temporary ones, else a subject's own, else `defaults`.

    Of `defaults` the last one of a window counts. Who is unlimited has no budget.
    """
    holding: dict[LimitWindow, tuple[Limit, datetime | None]] = {}
    generations: dict[LimitWindow, int] = {}
    for limit in defaults:
        if limit.unit is LimitUnit.SPEND:
            holding[limit.window] = limit, None
            generations[limit.window] = limit.reset_generation
    for limit in own.limits:
        if limit.unit is LimitUnit.SPEND:
            holding[limit.window] = limit, None
    for each in own.at(now).temporary:
        if each.limit.unit is LimitUnit.SPEND:
            holding[each.limit.window] = each.limit, each.until
    return tuple(
        Budget(
            window=window,
            capacity_nanousd=limit.capacity,
            soft=limit.soft,
            shadow=limit.shadow,
            temporary_until=until,
            reset_generation=max(
                generations.get(window, 0), own.generation_of((LimitUnit.SPEND, window))
            ),
        )
        for window, (limit, until) in sorted(holding.items(), key=lambda item: item[0])
        if not limit.unlimited
    )
