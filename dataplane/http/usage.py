"""`GET /v1/usage/stats`, `/v1/usage/summary`, `/v1/llm/quota`: the caller's own numbers.

What was used comes from the ledger, which is seconds behind; what is left comes from the counters
that admit requests, read at one instant. Asking counts against nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from dataplane.control.user_usage import UsageTotals, UserUsage
from dataplane.domain.authentication import authenticate
from dataplane.domain.calls import Dialect
from dataplane.domain.credentials import parse_credentials
from dataplane.domain.limiting import LayerPlan, LimitsUnavailable, Window
from dataplane.domain.periods import Calendar
from dataplane.domain.principals import Principal
from dataplane.domain.quotas import (
    LayerBalance,
    Quota,
    budget_of,
    money,
    quota_document,
    quotas_of,
    used_percentage,
)
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Snapshot
from dataplane.http.errors import refused
from dataplane.http.exchange import JSON_TYPE, HttpAnswer, HttpRequest
from dataplane.pipeline import Pipeline

# Redis answers within a millisecond, or is about to be found away.
_BALANCES_SECONDS: Final = 1.0
# Of a batch of 64 operations the most that lookers on take from requests that want to be admitted.
_MAX_READS_AT_ONCE: Final = 16
_RETRY_AFTER_SECONDS: Final = 5
_FREE_TIER: Final = "free"
# The figures are one caller's, and old the moment they are sent.
_NO_STORE: Final = ("cache-control", "no-store")
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


class Balances(Protocol):
    """Where the counters are."""

    @property
    def is_available(self) -> bool:
        """Return whether the counters are being asked at all."""

    async def balances(self, plan: LayerPlan, deadline_seconds: float) -> tuple[LayerBalance, ...]:
        """Return what every layer has counted, at one instant, or raise LimitsUnavailable."""


class UserUsages(Protocol):
    """Where the ledger is asked."""

    async def usage_of(self, user_id: str, usage_day: str, usage_month: str) -> UserUsage:
        """Return what a user used, or refuse with CONTROL_PLANE_UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class OwnNumbers:
    """What answers the questions of callers about themselves; belongs to one event loop."""

    pipeline: Pipeline
    limiter: Balances
    user_usages: UserUsages
    calendar: Calendar = field(default_factory=Calendar)
    _reads: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_MAX_READS_AT_ONCE), repr=False
    )

    async def quotas(self, caller: "Caller") -> tuple[Quota, ...]:
        """Return where the caller's own limits stand.

        Raises:
            Refusal: LIMITS_UNAVAILABLE: the counters did not answer within a second.
        """
        # What counts an endpoint or a model counts everybody's calls: its figures are shown to nobody.
        plan = caller.snapshot.plan_for(caller.principal, caller.address, "", "", caller.now_ms)
        if not any(layer.has_public_figures for layer in plan.layers):
            return ()
        try:
            # While Redis is away questions would pile up before it, beside settlements.
            if not self.limiter.is_available:
                raise LimitsUnavailable
            async with asyncio.timeout(_BALANCES_SECONDS), self._reads:
                return quotas_of(await self.limiter.balances(plan, _BALANCES_SECONDS))
        except (LimitsUnavailable, TimeoutError) as error:
            raise Refusal(
                Reason.LIMITS_UNAVAILABLE,
                "Limits cannot be read right now.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            ) from error

    async def usage(self, caller: "Caller") -> UserUsage:
        """Return what the caller's user used; today and this month are its organization's.

        Raises:
            Refusal: CONTROL_PLANE_UNAVAILABLE.
        """
        user, now_ms = caller.principal.user, caller.now_ms
        zone = user.organization.time_zone
        return await self.user_usages.usage_of(
            user.user_id,
            self.calendar.at(Window.DAY, zone, now_ms).period_id,
            self.calendar.at(Window.MONTH, zone, now_ms).period_id,
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, from where, and when. `now_ms` is Unix milliseconds."""

    snapshot: Snapshot
    principal: Principal
    address: str
    now_ms: int


_Document = dict[str, object]


async def usage_stats(numbers: OwnNumbers, request: HttpRequest) -> HttpAnswer:
    """Answer with the requests, tokens and cost of the caller's user, and the caller's limits."""
    return await _answered(numbers, request, _stats)


async def usage_summary(numbers: OwnNumbers, request: HttpRequest) -> HttpAnswer:
    """Answer with what the caller's user spent, and the budget that bounds it."""
    return await _answered(numbers, request, _summary)


async def quota(numbers: OwnNumbers, request: HttpRequest) -> HttpAnswer:
    """Answer with the caller's tier and limits; works while the control plane is away."""
    return await _answered(numbers, request, _quota)


async def _answered(
    numbers: OwnNumbers,
    request: HttpRequest,
    document_for: Callable[[OwnNumbers, Caller], Awaitable[_Document]],
) -> HttpAnswer:
    request_id = numbers.pipeline.new_request_id()
    try:
        document = await document_for(numbers, _caller(numbers.pipeline, request))
    except Refusal as refusal:
        return refused(refusal, Dialect.OPENAI, request_id, (_NO_STORE,))
    headers = (
        ("content-type", JSON_TYPE),
        ("x-request-id", request_id),
        ("request-id", request_id),
        _NO_STORE,
    )
    return HttpAnswer(200, headers, _ENCODER.encode(document))


def _caller(pipeline: Pipeline, request: HttpRequest) -> Caller:
    snapshot, now_ms = pipeline.current.get(), pipeline.clock_ms()
    principal = authenticate(snapshot, parse_credentials(request.headers), now_ms)
    return Caller(snapshot, principal, request.address, now_ms)


async def _quota(numbers: OwnNumbers, caller: Caller) -> _Document:
    tier, upgrade_url = caller.principal.tier, caller.snapshot.service.upgrade_url
    document: _Document = {"tier": tier or None}
    if upgrade_url and tier == _FREE_TIER:
        document["upgrade_url"] = upgrade_url
    document["limits"] = await _limits(numbers, caller)
    return document


async def _stats(numbers: OwnNumbers, caller: Caller) -> _Document:
    limits = await _limits(numbers, caller)
    usage = await numbers.usage(caller)
    user = caller.principal.user
    return {
        "user": user.name,
        "organization": user.organization.name,
        "tier": caller.principal.tier or None,
        "requests": _per_period(usage, lambda totals: totals.requests),
        "tokens": _per_period(
            usage,
            lambda totals: {"input": totals.input_tokens, "output": totals.output_tokens},
        ),
        "cost_usd": _per_period(usage, lambda totals: money(totals.charged_nanousd)),
        "limits": limits,
    }


async def _summary(numbers: OwnNumbers, caller: Caller) -> _Document:
    budget = budget_of(await numbers.quotas(caller))
    usage = await numbers.usage(caller)
    return {
        "total_spend": money(usage.total.charged_nanousd),
        "budget": budget and money(budget.layer.capacity),
        "budget_remaining": budget and money(budget.remaining),
        "budget_used_percentage": budget and used_percentage(budget),
        "total_requests": usage.total.requests,
        "last_24h_requests": usage.last_24h.requests,
        "last_24h_cost": money(usage.last_24h.charged_nanousd),
    }


async def _limits(numbers: OwnNumbers, caller: Caller) -> list[_Document]:
    return [quota_document(each) for each in await numbers.quotas(caller)]


def _per_period(usage: UserUsage, figure: Callable[[UsageTotals], object]) -> _Document:
    return {
        "today": figure(usage.day),
        "this_month": figure(usage.month),
        "last_24h": figure(usage.last_24h),
        "total": figure(usage.total),
    }
