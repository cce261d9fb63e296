"""From the limiter's verdict to the refusal that a caller can act on."""

from typing import Final

from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import (
    NEVER_MS,
    Denial,
    LayerKind,
    Standing,
    SubjectKind,
)
from dataplane.domain.principals import Principal
from dataplane.domain.refusals import Reason, Refusal

# What never resets is topped up by a person: asking again the same day is pointless.
_NEVER_RETRY_SECONDS: Final = 86_400
# A slot may come free at any moment.
_PARALLEL_RETRY_SECONDS: Final = 1
_FREE_TIER: Final = "free"


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
    details = _details(denial, now_ms)
    if upgrade_url and principal.tier == _FREE_TIER:
        details["upgrade_url"] = upgrade_url
    if denial.is_never and layer.capacity > 0:
        return Refusal(
            Reason.REQUEST_TOO_LARGE_FOR_LIMIT,
            f"This request alone is larger than the limit {layer.name}.",
            details=details,
            standings=denial.standings,
        )
    retry_after_seconds = _retry_after_seconds(standing, jitter)
    if layer.kind is LayerKind.PARALLEL:
        reason, message = Reason.TOO_MANY_PARALLEL_REQUESTS, "Too many requests are in flight"
    elif layer.kind is not LayerKind.SPEND:
        reason, message = Reason.RATE_LIMIT_EXCEEDED, "The limit is reached"
    elif layer.subject_kind is SubjectKind.GLOBAL:
        reason, message = Reason.BUDGET_PAUSED, "The service's budget for today is used up"
    else:
        reason, message = Reason.INSUFFICIENT_QUOTA, "The budget is used up"
    return Refusal(
        reason,
        f"{message}: {layer.name}.",
        details=details,
        retry_after_seconds=retry_after_seconds,
        standings=denial.standings,
    )


def _details(denial: Denial, now_ms: int) -> dict[str, object]:
    standing = denial.binding
    layer = standing.layer
    details: dict[str, object] = {"layer": layer.name, "window": layer.window.value}
    if standing.reset_ms > 0:
        details["resets_at"] = instant_text(now_ms + standing.reset_ms)
    if not layer.has_public_figures:
        return details
    if layer.kind is LayerKind.SPEND:
        details["budget"] = usd(layer.capacity)
        details["spent"] = usd(denial.settled_nanousd or 0)
        details["held"] = usd(denial.held_nanousd or 0)
    else:
        details["limit"] = layer.capacity
    return details


def usd(nanousd: int) -> str:
    """Return an amount as a decimal string of US dollars, exact, without trailing zeros."""
    whole, fraction = divmod(nanousd, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _retry_after_seconds(standing: Standing, jitter: float) -> int:
    if standing.layer.kind is LayerKind.PARALLEL:
        return _PARALLEL_RETRY_SECONDS
    if standing.reset_ms == NEVER_MS:
        return _NEVER_RETRY_SECONDS
    seconds = -(-standing.reset_ms // 1000)
    return max(1, seconds + int(seconds * 0.03 * jitter))
