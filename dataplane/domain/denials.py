"""From the limiter's verdict to the refusal that a caller can act on."""

from typing import Final

from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import (
    NEVER_MS,
    Denial,
    Layer,
    LayerKind,
    Standing,
    SubjectKind,
    Unit,
    Window,
)
from dataplane.domain.principals import Principal
from dataplane.domain.refusals import Reason, Refusal

# What never resets is topped up by a person: asking again the same day is pointless.
_NEVER_RETRY_SECONDS: Final = 86_400
# A slot may come free at any moment.
_PARALLEL_RETRY_SECONDS: Final = 1
_UNAVAILABLE_RETRY_SECONDS: Final = 5
_FREE_TIER: Final = "free"
# Whose budget nobody has for oneself: when it is used up, this service pauses.
_SERVICE_BUDGETS: Final = {
    SubjectKind.GLOBAL: "The service's budget",
    SubjectKind.ENDPOINT: "The service's budget for this endpoint",
    SubjectKind.MODEL: "The service's budget for this model",
}
_TIME_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


def closed_denial(layer: Layer) -> Denial:
    """Return the denial by a layer whose capacity is 0: no counter is asked, so none of the others is told."""
    standing = Standing(layer, 0, NEVER_MS, "")
    nothing = 0 if layer.unit is Unit.SPEND else None
    return Denial(standing, True, (standing,), settled_nanousd=nothing, held_nanousd=nothing)


def limits_unavailable() -> Refusal:
    """Return the refusal of what cannot be admitted until the counters are back."""
    return Refusal(
        Reason.LIMITS_UNAVAILABLE,
        "Limits cannot be checked right now.",
        retry_after_seconds=_UNAVAILABLE_RETRY_SECONDS,
    )


def refusal_for(
    denial: Denial, principal: Principal, upgrade_url: str, now_ms: int, jitter: float
) -> Refusal:
    """Return the refusal that says which layer was short and until when.

    Args:
        denial: What the limiter said.
        principal: Who called; the free tier is told where to upgrade.
        upgrade_url: Where that is; empty for nowhere.
        now_ms: Unix milliseconds.
        jitter: In [0, 1): spreads the retries of many callers over 3 % of the wait.
    """
    standing = denial.binding
    layer = standing.layer
    is_too_large = denial.is_never and layer.capacity > 0
    if denial.is_degraded and not denial.is_never and standing.reset_ms == NEVER_MS:
        # Larger than this process' share alone: only the counters have room for it.
        return limits_unavailable()
    details = _details(denial, None if is_too_large else now_ms)
    if upgrade_url and principal.tier == _FREE_TIER:
        details["upgrade_url"] = upgrade_url
    if is_too_large:
        return Refusal(
            Reason.REQUEST_TOO_LARGE_FOR_LIMIT,
            f"This request alone is larger than the limit {layer.name}.",
            details=details,
            standings=denial.standings,
            is_degraded=denial.is_degraded,
        )
    reason, message = _verdict(layer)
    return Refusal(
        reason,
        f"{message}: {layer.name}.",
        details=details,
        retry_after_seconds=_retry_after_seconds(standing, jitter),
        is_final=standing.reset_ms == NEVER_MS,
        standings=denial.standings,
        is_degraded=denial.is_degraded,
    )


def window_text(layer: Layer) -> str:
    """Return over which time a layer counts: `day`, or of a rate every how long: `1s`, `90s`, `2h`."""
    if layer.window is not Window.RATE:
        return layer.window.value
    for unit_ms, letter in _TIME_UNITS:
        if layer.every_ms % unit_ms == 0:
            return f"{layer.every_ms // unit_ms}{letter}"
    return f"{layer.every_ms}ms"


def _verdict(layer: Layer) -> tuple[Reason, str]:
    if layer.kind is LayerKind.PARALLEL:
        return Reason.TOO_MANY_PARALLEL_REQUESTS, "Too many requests are in flight"
    if layer.kind is not LayerKind.SPEND:
        return Reason.RATE_LIMIT_EXCEEDED, "The limit is reached"
    budget = _SERVICE_BUDGETS.get(layer.subject_kind)
    if budget is None:
        return Reason.INSUFFICIENT_QUOTA, "The budget is used up"
    period = " for today" if layer.window is Window.DAY else ""
    return Reason.BUDGET_PAUSED, f"{budget}{period} is used up"


def _details(denial: Denial, now_ms: int | None) -> dict[str, object]:
    """Return what the body says of a denial; without `now_ms` nothing about a reset that does not help."""
    standing = denial.binding
    layer = standing.layer
    # How fast a rate is that others share is one of its figures.
    window = window_text(layer) if layer.has_public_figures else layer.window.value
    details: dict[str, object] = {"layer": layer.name, "window": window}
    if now_ms is not None and standing.reset_ms > 0:
        details["resets_at"] = instant_text(now_ms + standing.reset_ms)
    if not layer.has_public_figures:
        return details
    if layer.kind is LayerKind.SPEND:
        details["budget"] = usd(layer.capacity)
        details["spent"] = usd(denial.settled_nanousd or 0)
        details["held"] = usd(denial.held_nanousd or 0)
        return details
    details["limit"] = layer.capacity
    if layer.kind is LayerKind.RATE:
        details["burst"] = layer.most_at_once
    return details


def usd(nanousd: int) -> str:
    """Return an amount as a decimal string of US dollars, exact, without trailing zeros."""
    whole, fraction = divmod(nanousd, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _retry_after_seconds(standing: Standing, jitter: float) -> int:
    if standing.reset_ms == NEVER_MS:
        return _NEVER_RETRY_SECONDS
    if standing.layer.kind is LayerKind.PARALLEL:
        return _PARALLEL_RETRY_SECONDS
    seconds = -(-standing.reset_ms // 1000)
    return max(1, seconds + int(seconds * 0.03 * jitter))
