"""The door: what a call may use is reserved from every layer that counts it, or it is refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from dataplane.admissions import Admission, Intake, Reservation
from dataplane.bills import BillBook
from dataplane.domain.authentication import revoked_refusal
from dataplane.domain.calls import Call
from dataplane.domain.denials import limits_unavailable, refusal_for
from dataplane.domain.emergency import may_fail_open
from dataplane.domain.estimation import LEAST_OUTPUT_TOKENS, affordable_output_tokens, demand_of
from dataplane.domain.expectations import OutputExpectations
from dataplane.domain.limiting import Demand, Denial, Denied, LayerPlan, LimitsUnavailable, Unit
from dataplane.domain.principals import Principal
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.revocations import Revocation
from dataplane.domain.routing import Attempt
from dataplane.domain.snapshot import Position, Snapshot
from dataplane.limits.marks import Overruled
from dataplane.usage_events import meta_of


def _ignore_revocation(_revocation: Revocation) -> None:
    """Tell nobody."""


class Limiter(Protocol):
    """What counts."""

    async def reserve(
        self,
        request_id: str,
        plan: LayerPlan,
        demand: Demand,
        meta: bytes,
        on_late_undo: Callable[[], None],
        position: Position,
        principal: Principal,
    ) -> Reservation:
        """Take `demand` from every layer, or raise Denied, Overruled or LimitsUnavailable.

        `on_late_undo` is called when others may have reported a request that was not let in.
        `principal` calls by the configuration of `position`.
        """


class Emergency(Protocol):
    """What counts, in this process alone, while the counters cannot be asked."""

    def reserve(
        self,
        request_id: str,
        plan: LayerPlan,
        demand: Demand,
        organization_id: str,
        max_replicas: int,
    ) -> Reservation:
        """Take `demand` from this replica's share of the emergency limits, or raise Denied or LimitsUnavailable."""


class Admitting:
    """Admits calls, against the counters or, where they cannot be asked and it is allowed, without them."""

    def __init__(
        self,
        limiter: Limiter,
        bills: BillBook,
        clock_ms: Callable[[], int],
        emergency: Emergency | None = None,
        on_revoked_elsewhere: Callable[[Revocation], None] = _ignore_revocation,
    ) -> None:
        """Put the parts together; without `emergency` nothing is admitted while counters are away.

        `on_revoked_elsewhere` is called from the event loop, perhaps many times, with a revocation
        that other nodes have applied and this one has not heard of.
        """
        self._limiter = limiter
        self._bills = bills
        self._clock_ms = clock_ms
        self._emergency = emergency
        self._on_revoked_elsewhere = on_revoked_elsewhere
        self._expectations = OutputExpectations()

    def note_answer(self, admission: Admission, output_tokens: int) -> None:
        """Learn how long answers of a model are from one that came whole."""
        self._expectations.note(admission.attempt.model, output_tokens // admission.call.choices)

    async def admit(
        self,
        snapshot: Snapshot,
        principal: Principal,
        call: Call,
        attempt: Attempt,
        now_ms: int,
    ) -> Admission:
        """Reserve an upper bound; where the caller gave no output cap, one that fits."""
        plan = snapshot.plan_for(principal, call.client_ip, call.endpoint, attempt.model, now_ms)
        if call.server_tools and plan.has_hard_budget:
            raise _unbounded(call.server_tools)
        own_cap = None
        if call.output_cap_tokens is None and plan.counts_output:
            own_cap = principal.user.organization.default_output_cap_tokens
        expected = self._expected_output_tokens(plan, call, attempt)
        while True:
            cap = call.output_cap_tokens or own_cap
            demand = demand_of(call, attempt.price, cap, expected)
            intake = Intake(
                snapshot, principal, call, plan, attempt, demand, own_cap, expected, now_ms
            )
            try:
                return await self._held(intake)
            except Denied as denied:
                smaller = _smaller_cap(own_cap, call, attempt, denied.denial)
                if smaller is None:
                    raise self._denied(denied.denial, snapshot, principal) from denied
                own_cap = smaller
            except Overruled as overruled:
                self._on_revoked_elsewhere(overruled.revocation)
                raise revoked_refusal(snapshot, overruled.revocation.kind) from overruled
            except LimitsUnavailable as error:
                raise limits_unavailable() from error

    async def _held(self, intake: Intake) -> Admission:
        """Reserve what `intake` demands; without counters within emergency limits, where that is allowed."""
        request_id, plan, demand = intake.call.request_id, intake.plan, intake.demand
        draft = self._bills.draft_for(intake)
        retraction = self._bills.retraction_of(draft)
        try:
            reservation = await self._limiter.reserve(
                request_id,
                plan,
                demand,
                meta_of(draft),
                retraction.record,
                intake.snapshot.position,
                intake.principal,
            )
        except LimitsUnavailable:
            organization = intake.principal.user.organization
            if self._emergency is None or not may_fail_open(organization, plan):
                raise
            local = self._emergency.reserve(
                request_id,
                plan,
                replace(demand, cost_nanousd=max(demand.cost_nanousd, demand.soft_nanousd)),
                organization.organization_id,
                intake.snapshot.service.max_replicas,
            )
            retraction.is_void = True
            return Admission.of(intake, local, draft, is_degraded=True)
        return Admission.of(intake, reservation, draft)

    def _expected_output_tokens(self, plan: LayerPlan, call: Call, attempt: Attempt) -> int | None:
        """Return how many tokens a soft budget reserves for the output; None without one."""
        if not plan.has_soft_budget:
            return None
        each = self._expectations.output_tokens(attempt.model)
        if call.output_cap_tokens is not None:
            each = min(each, call.output_cap_tokens)
        return each * call.choices

    def _denied(self, denial: Denial, snapshot: Snapshot, principal: Principal) -> Refusal:
        upgrade_url, jitter = snapshot.service.upgrade_url, os.urandom(1)[0] / 256
        return refusal_for(denial, principal, upgrade_url, self._clock_ms(), jitter)


def _unbounded(tools: tuple[str, ...]) -> Refusal:
    """Return the refusal of tools that the provider runs and bills by itself: nothing bounds their cost."""
    return Refusal(
        Reason.UNSUPPORTED_PARAMETER,
        f"The provider bills {', '.join(tools)} without a ceiling, which a hard budget cannot bound.",
        param="tools",
    )


def _smaller_cap(own_cap: int | None, call: Call, attempt: Attempt, denial: Denial) -> int | None:
    """Return an output cap that what is left can pay for; None when there is none to try."""
    if own_cap is None or denial.binding.layer.unit not in (Unit.TOKENS, Unit.SPEND):
        return None
    affordable = affordable_output_tokens(call, attempt.price, denial.standings)
    # Never below the least: refused with that, the caller learns what is short of its own wish.
    smaller = max(affordable, LEAST_OUTPUT_TOKENS)
    return smaller if smaller < own_cap else None
