"""What the ledger is told about a request, as far as it has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dataplane.admissions import Intake
from dataplane.domain.calls import NO_USAGE, TriedLayer, Usage, UsageEvent, UsageState
from dataplane.domain.limiting import (
    Demand,
    LayerKind,
    LayerPlan,
    Standing,
    SubjectKind,
    Unit,
    Window,
)
from dataplane.domain.periods import Calendar

_UTC: Final = "UTC"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a request has come: how it ended, or how it is taken to have ended until it says more."""

    state: UsageState
    usage: Usage = NO_USAGE
    charged_nanousd: int = 0
    http_status: int = 0
    error_code: str = ""
    attempts: int = 0
    duration_ms: int = 0
    first_content_ms: int = 0


def event_of(
    it: Intake,
    node_id: str,
    calendar: Calendar,
    outcome: Outcome,
    *,
    admitted_at_ms: int,
    standings: Sequence[Standing] = (),
    is_degraded: bool = False,
) -> UsageEvent:
    """Return the record of a request, as far as it has come.

    `admitted_at_ms` is limiter time: it says in which periods the request counts.
    """
    call, attempt, principal, demand = it.call, it.attempt, it.principal, it.demand
    user, organization, price = principal.user, principal.user.organization, it.attempt.price
    is_device, zone = principal.is_device, organization.time_zone
    return UsageEvent(
        request_id=call.request_id,
        client_request_id=call.client_request_id,
        node_id=node_id,
        state=outcome.state,
        http_status=outcome.http_status,
        error_code=outcome.error_code,
        organization_id=organization.organization_id,
        organization=organization.name,
        user_id=user.user_id,
        user=user.name,
        key_id="" if is_device else principal.principal_id,
        key="" if is_device else principal.name,
        device_id=principal.principal_id if is_device else "",
        tier=principal.tier,
        ip=call.client_ip,
        router=attempt.router.name,
        rule_id=attempt.rule.rule_id,
        provider=attempt.provider.name,
        requested_model=call.model,
        model=attempt.model,
        endpoint=call.endpoint,
        stream=call.is_stream,
        dialect=call.dialect,
        usage=outcome.usage,
        cost_nanousd=outcome.charged_nanousd,
        charged_nanousd=outcome.charged_nanousd,
        reserved_nanousd=it.reserved_nanousd,
        reserved_tokens=demand.tokens,
        price_id=price.price_id,
        price_revision=price.revision,
        usage_day=calendar.at(Window.DAY, zone, admitted_at_ms).period_id,
        usage_month=calendar.at(Window.MONTH, zone, admitted_at_ms).period_id,
        service_day=calendar.at(Window.DAY, _UTC, admitted_at_ms).period_id,
        config_revision=it.snapshot.position.revision,
        attempts=outcome.attempts,
        started_at_ms=it.started_at_ms,
        duration_ms=outcome.duration_ms,
        first_content_ms=outcome.first_content_ms,
        generations=_raised_generations(it.plan),
        address_subjects=_address_subjects(it.plan),
        layers=tuple([_tried(standing, demand) for standing in standings]),
        is_degraded=is_degraded,
        output_cap_tokens=it.output_cap_tokens or 0,
        rates=(
            price.input,
            price.output,
            price.cache_read,
            price.cache_write_5m,
            price.cache_write_1h,
            price.request_nanousd,
        ),
    )


def _tried(standing: Standing, demand: Demand) -> TriedLayer:
    layer = standing.layer
    reserved, is_soft = 1, False
    if layer.kind is LayerKind.SPEND:
        is_soft = not layer.is_hard
        reserved = demand.soft_nanousd if is_soft else demand.cost_nanousd
    elif layer.unit is Unit.TOKENS:
        reserved = demand.tokens
    return TriedLayer(
        layer.name, layer.capacity, reserved, standing.remaining, layer.is_shadow, is_soft
    )


def _raised_generations(plan: LayerPlan) -> tuple[tuple[str, int], ...]:
    layers = plan.layers
    return tuple((layer.name, layer.reset_generation) for layer in layers if layer.reset_generation)


def _address_subjects(plan: LayerPlan) -> tuple[str, ...]:
    """Return the ids of the addresses that layers of the plan count, each once."""
    ids = (each.subject_id for each in plan.layers if each.subject_kind is SubjectKind.IP)
    return tuple(dict.fromkeys(ids))
