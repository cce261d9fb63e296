"""What the ledger is told about a request, as far as it has come.

A request's record is written three times: for the limiter, for the file before anything goes
upstream, and when it is over. All but a few fields stay the same, so it is made once as a draft,
and what a plan says in all of its records is worked out once for the plan. What the layers said is
known when it was let in: the limiter's has none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from dataplane.admissions import Admission, Intake
from dataplane.domain.calls import NO_USAGE, TriedLayers, UsageEvent, UsageState
from dataplane.domain.limiting import (
    Demand,
    Layer,
    LayerKind,
    LayerPlan,
    Standing,
    SubjectKind,
    Unit,
    Window,
)
from dataplane.domain.periods import Calendar

_UTC: Final = "UTC"
# What a layer takes of a request, as places in `_amounts`.
_ONE, _TOKENS, _HARD, _SOFT = range(4)


@dataclass(frozen=True, slots=True)
class Columns:
    """What layers say of every request, in their order.

    `amounts` says which of a request's amounts each layer takes; the rest is as in `TriedLayers`.
    """

    names: tuple[str, ...]
    capacities: tuple[int, ...]
    amounts: tuple[int, ...]
    shadows: tuple[int, ...]
    softs: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Self:
        """Return the columns of `layers`."""
        return cls(
            tuple(each.name for each in layers),
            tuple(each.capacity for each in layers),
            tuple(map(_amount_of, layers)),
            tuple(place for place, each in enumerate(layers) if each.is_shadow),
            tuple(place for place, each in enumerate(layers) if _is_soft(each)),
        )

    def tried(self, demand: Demand, standings: Sequence[Standing]) -> TriedLayers:
        """Return what the layers said to a request; `standings` are theirs, in their order."""
        amounts = (1, demand.tokens, demand.cost_nanousd, demand.soft_nanousd)
        return TriedLayers(
            self.names,
            self.capacities,
            tuple([amounts[place] for place in self.amounts]),
            tuple([each.remaining for each in standings]),
            self.shadows,
            self.softs,
        )


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What all records of requests with one plan have in common."""

    generations: tuple[tuple[str, int], ...]
    address_subjects: tuple[str, ...]
    columns: Columns

    @classmethod
    def of(cls, plan: LayerPlan) -> Self:
        """Return the facts of `plan`; addresses are named once each, and not by themselves."""
        addresses = (each.subject_id for each in plan.layers if each.subject_kind is SubjectKind.IP)
        return cls(
            plan.generations,
            tuple(dict.fromkeys(addresses)),
            Columns.of(plan.layers),
        )


def draft_of(it: Intake, facts: PlanFacts, node_id: str, calendar: Calendar) -> UsageEvent:
    """Return the record of a request that nobody will ever say more about.

    It is charged what it reserved, in the periods of its start.
    """
    call, attempt, principal = it.call, it.attempt, it.principal
    user, organization, price = principal.user, principal.user.organization, it.attempt.price
    is_device, reserved = principal.is_device, it.reserved_nanousd
    usage_day, usage_month, service_day = _days(it, calendar, it.started_at_ms, it.started_at_ms)
    return UsageEvent(
        request_id=call.request_id,
        client_request_id=call.client_request_id,
        node_id=node_id,
        state=UsageState.ABANDONED,
        http_status=0,
        error_code="",
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
        usage=NO_USAGE,
        cost_nanousd=reserved,
        charged_nanousd=reserved,
        reserved_nanousd=reserved,
        reserved_tokens=it.demand.tokens,
        price_id=price.price_id,
        price_revision=price.revision,
        usage_day=usage_day,
        usage_month=usage_month,
        service_day=service_day,
        config_revision=it.snapshot.position.revision,
        attempts=0,
        started_at_ms=it.started_at_ms,
        duration_ms=0,
        first_content_ms=0,
        generations=facts.generations,
        address_subjects=facts.address_subjects,
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


def meta_of(draft: UsageEvent) -> bytes:
    """Return what whoever finds the reservation of a dead process can report, as JSON text."""
    return msgspec.json.encode(draft)


def admitted(it: Admission, facts: PlanFacts, calendar: Calendar) -> UsageEvent:
    """Return the record of a request that was let in, before anything of it went upstream.

    In which periods it counts is said by limiter time, and where several servers count, by that of
    each: at midnight they may differ. Within emergency limits its layers are those
    that were asked, with this replica's share.
    """
    columns, standings = facts.columns, it.tried
    if it.is_degraded:
        columns = Columns.of([each.layer for each in standings])
    held = it.reservation
    usage_day, usage_month, service_day = _days(
        it, calendar, held.admitted_at_ms, held.service_admitted_at_ms
    )
    return msgspec.structs.replace(
        it.draft,
        usage_day=usage_day,
        usage_month=usage_month,
        service_day=service_day,
        layers=columns.tried(it.demand, standings),
        is_degraded=it.is_degraded,
    )


def _days(it: Intake, calendar: Calendar, at_ms: int, service_at_ms: int) -> tuple[str, str, str]:
    """Return the caller's day and month at `at_ms`, and the service's day at `service_at_ms`.

    Both are Unix milliseconds.
    """
    zone = it.principal.user.organization.time_zone
    return (
        calendar.at(Window.DAY, zone, at_ms).period_id,
        calendar.at(Window.MONTH, zone, at_ms).period_id,
        calendar.at(Window.DAY, _UTC, service_at_ms).period_id,
    )


def _amount_of(layer: Layer) -> int:
    if layer.kind is LayerKind.SPEND:
        return _SOFT if _is_soft(layer) else _HARD
    return _TOKENS if layer.unit is Unit.TOKENS else _ONE


def _is_soft(layer: Layer) -> bool:
    return layer.kind is LayerKind.SPEND and not layer.is_hard
