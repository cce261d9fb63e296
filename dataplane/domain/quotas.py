"""What a caller may see of its limits: how much is used, what is left, and when it is back.

Layers that count other tenants too are left out: their figures would leak. Money is nano-USD inside
and becomes exact decimal numbers of US dollars in documents, never floats.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

import msgspec

from dataplane.domain.denials import usd, window_text
from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import Layer, LayerKind, SubjectKind, Window

_USD: Final = "usd"
_HUNDREDTH: Final = Decimal("0.01")
# Whose budget is the caller's own, nearest first; within one, what a person plans with first.
_BUDGET_SUBJECTS: Final = (
    SubjectKind.USER,
    SubjectKind.KEY,
    SubjectKind.DEVICE,
    SubjectKind.ORGANIZATION,
    SubjectKind.IP,
    SubjectKind.ENDPOINT,
    SubjectKind.MODEL,
    SubjectKind.GLOBAL,
)
_BUDGET_WINDOWS: Final = (Window.MONTH, Window.TOTAL, Window.DAY)


@dataclass(frozen=True, slots=True)
class LayerBalance:
    """What one layer has counted in its current window or period.

    Attributes:
        layer: The layer.
        settled: Spent, or counted, in the layer's unit; of a rate how many of those that may come
            at once are not back yet.
        held: Reserved by requests in flight; spend layers only, else 0.
        period_id: The period it is about; empty for rolling and parallel layers.
        resets_at_ms: Limiter time, in Unix milliseconds, at which all of it is back: the end of a
            period, or when the last of a rolling window or a rate has left it. None where time gives
            nothing back: requests in flight, totals, and what has counted nothing.
    """

    layer: Layer
    settled: int
    held: int
    period_id: str
    resets_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """One layer as its caller sees it. Amounts are in the layer's unit, money in nano-USD.

    Attributes:
        layer: The layer.
        used: Counted or spent; more than the limit where a soft budget was overshot.
        held: Reserved by requests in flight; spend layers only, else 0.
        remaining: What the next request may take at most, never below 0.
        resets_at_ms: As in `LayerBalance`.
    """

    layer: Layer
    used: int
    held: int
    remaining: int
    resets_at_ms: int | None

    @property
    def is_money(self) -> bool:
        """Return whether its amounts are nano-USD."""
        return self.layer.kind is LayerKind.SPEND


def quotas_of(balances: Iterable[LayerBalance]) -> tuple[Quota, ...]:
    """Return what a caller may see of `balances`, in their order."""
    return tuple(_quota_of(each) for each in balances if each.layer.has_public_figures)


def budget_of(quotas: Iterable[Quota]) -> Quota | None:
    """Return the budget that a caller means by "mine", or None when nothing bounds its spend.

    The user's own comes before the key's or device's, that before the organization's and an
    address'; of one subject the month's before the total before the day's. One that refuses
    nothing (shadow) is no budget.
    """
    budgets = [each for each in quotas if each.is_money and not each.layer.is_shadow]
    return min(budgets, key=_nearness, default=None)


def used_percentage(budget: Quota) -> Decimal:
    """Return how much of a budget is used or held, in percent with at most two decimals.

    It is above 100 where a soft budget was overshot, and 100 of a budget of nothing.
    """
    if budget.layer.capacity == 0:
        return Decimal(100)
    taken = Decimal(100 * (budget.used + budget.held)) / budget.layer.capacity
    return taken.quantize(_HUNDREDTH, ROUND_HALF_UP)


def quota_document(quota: Quota) -> dict[str, object]:
    """Return `quota` as it stands in an answer."""
    layer, is_money = quota.layer, quota.is_money
    amount = money if is_money else int
    document: dict[str, object] = {
        "layer": layer.name,
        "scope": layer.subject_kind.value,
        "unit": _USD if is_money else layer.unit.value,
        "window": window_text(layer),
        "limit": amount(layer.capacity),
    }
    if layer.kind is LayerKind.RATE:
        document["burst"] = layer.most_at_once
    document["used"] = amount(quota.used)
    if is_money:
        document["held"] = money(quota.held)
    document["remaining"] = amount(quota.remaining)
    resets_at_ms = quota.resets_at_ms
    document["resets_at"] = None if resets_at_ms is None else instant_text(resets_at_ms)
    if is_money:
        document["hard"] = layer.is_hard
    document["shadow"] = layer.is_shadow
    return document


def money(nanousd: int) -> msgspec.Raw:
    """Return an amount as an exact JSON number of US dollars."""
    return msgspec.Raw(usd(nanousd).encode())


def _quota_of(balance: LayerBalance) -> Quota:
    layer = balance.layer
    most = layer.most_at_once if layer.kind is LayerKind.RATE else layer.capacity
    return Quota(
        layer=layer,
        used=balance.settled,
        held=balance.held,
        remaining=max(0, most - balance.settled - balance.held),
        resets_at_ms=balance.resets_at_ms,
    )


def _nearness(quota: Quota) -> tuple[int, int]:
    layer = quota.layer
    return _BUDGET_SUBJECTS.index(layer.subject_kind), _BUDGET_WINDOWS.index(layer.window)
