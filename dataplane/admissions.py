"""Requests that ask to be let in, and those that were: the values that the rest of the way reads."""

from collections.abc import Sequence
from typing import Protocol, Self

import msgspec

from dataplane.domain.calls import Call, UsageEvent
from dataplane.domain.emergency import is_counted
from dataplane.domain.limiting import Demand, LayerPlan, Standing
from dataplane.domain.principals import Principal
from dataplane.domain.routing import Attempt
from dataplane.domain.snapshot import Snapshot


class Reservation(Protocol):
    """What a request holds; both calls are plain, cannot be cancelled, and the first one counts."""

    admitted_at_ms: int

    @property
    def service_admitted_at_ms(self) -> int:
        """Return when it was admitted by the clock of the counters that organizations share."""

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Return where each layer stands."""

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what is held by what was used."""

    def release(self) -> None:
        """Give everything back."""

    async def extend(self, expected_nanousd: int) -> bool:
        """Have soft budgets hold so much; return whether they all have room for it."""


class Intake(msgspec.Struct, frozen=True):
    """A request that asks to be let in, and under what.

    A struct, as what follows: every request makes one, and a frozen dataclass takes ten times as long.

    `demand` is what its layers are asked for. `output_cap_tokens` is what the gateway sends upstream
    because the caller gave no cap; None: the caller did, or nothing that needs a bound counts its
    output. `expected_output_tokens` is what soft budgets reserve, of all choices; None: there are none.
    """

    snapshot: Snapshot
    principal: Principal
    call: Call
    plan: LayerPlan
    attempt: Attempt
    demand: Demand
    output_cap_tokens: int | None
    expected_output_tokens: int | None
    started_at_ms: int

    @property
    def reserved_nanousd(self) -> int:
        """What is charged if nobody ever learns what it cost."""
        return self.demand.soft_nanousd if self.plan.charges_expected else self.demand.cost_nanousd


class Admission(Intake, frozen=True):
    """A request that was let in; `is_degraded`: within emergency limits, without the counters.

    `draft` is its usage record as it stood before the counters were asked.
    """

    reservation: Reservation
    draft: UsageEvent
    is_degraded: bool = False

    @property
    def tried(self) -> Sequence[Standing]:
        """Where each layer stands that was asked: within emergency limits those of days are not."""
        standings = self.reservation.standings
        if self.is_degraded:
            return [each for each in standings if is_counted(each.layer)]
        return standings

    @classmethod
    def of(
        cls,
        intake: Intake,
        reservation: Reservation,
        draft: UsageEvent,
        *,
        is_degraded: bool = False,
    ) -> Self:
        """Return `intake` with what it holds."""
        return cls(
            intake.snapshot,
            intake.principal,
            intake.call,
            intake.plan,
            intake.attempt,
            intake.demand,
            intake.output_cap_tokens,
            intake.expected_output_tokens,
            intake.started_at_ms,
            reservation,
            draft,
            is_degraded,
        )
