"""What is said about one admitted request: to the limiter, and to the ledger."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from dataplane.domain.calls import NO_USAGE, Call, Dialect, Usage, UsageEvent, UsageState
from dataplane.domain.limiting import MAX_AMOUNT, Demand, LayerPlan, Standing, Window
from dataplane.domain.periods import Calendar
from dataplane.domain.prices import cost_of
from dataplane.domain.principals import Principal
from dataplane.domain.refusals import Reason
from dataplane.domain.routing import Attempt
from dataplane.domain.snapshot import Snapshot

_UTC: Final = "UTC"


class Reservation(Protocol):
    """What a request holds; both calls are plain, cannot be cancelled, and the first one counts."""

    admitted_at_ms: int

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Return where each layer stands."""

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        """Replace what is held by what was used."""

    def release(self) -> None:
        """Give everything back."""


class Reporter(Protocol):
    """What remembers requests until they are in the ledger."""

    @property
    def is_full(self) -> bool:
        """Return whether nothing more can be remembered."""

    def record_open(self, event: UsageEvent) -> None:
        """Remember that a request is about to go upstream."""

    def record_close(self, event: UsageEvent) -> None:
        """Remember how it ended."""

    def flush(self) -> None:
        """Write what was recorded; a process that dies after this has lost nothing of it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was let in, and what it may use.

    `output_cap_tokens` is what the gateway sends upstream because the caller gave no cap; None:
    the caller did, or nothing counts its output.
    """

    snapshot: Snapshot
    principal: Principal
    call: Call
    plan: LayerPlan
    attempt: Attempt
    demand: Demand
    reservation: Reservation
    output_cap_tokens: int | None
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class BillBook:
    """What every bill of this process is written with.

    `clock_ms` is Unix milliseconds; `status_of` is the HTTP status that callers of a dialect get.
    """

    reporter: Reporter
    node_id: str
    clock_ms: Callable[[], int]
    status_of: Callable[[Reason, Dialect], int]
    calendar: Calendar = field(default_factory=Calendar)

    def bill_for(self, admission: Admission) -> "Bill":
        """Return the bill of a request that was just let in."""
        return Bill(admission, self)


class Bill:
    """The end of one admitted request; it comes exactly once.

    Closing is a plain call: the settlement is in the limiter's queue and the record in the file
    when it returns, so that a caller's next request finds its slot and its money.
    """

    __slots__ = (
        "_book",
        "admission",
        "attempts",
        "cost_nanousd",
        "first_content_ms",
        "is_closed",
        "is_revoked",
    )

    def __init__(self, admission: Admission, book: "BillBook") -> None:
        self.admission = admission
        self.attempts = 0
        self.cost_nanousd = 0
        self.first_content_ms = 0
        self.is_closed = False
        self.is_revoked = False
        self._book = book

    @property
    def elapsed_ms(self) -> int:
        """Return the milliseconds since the request was read."""
        return max(0, self._book.clock_ms() - self.admission.started_at_ms)

    def open(self) -> None:
        """Record, in the file, that bytes are about to go upstream.

        Until it is closed the record stands for a request whose process died: charged in full.
        """
        self.attempts += 1
        reserved = self.admission.demand.cost_nanousd
        self._book.reporter.record_open(
            self._event(UsageState.ABANDONED, NO_USAGE, reserved, 0, "")
        )
        self._book.reporter.flush()

    def note_content(self) -> None:
        """Note that the first content is there."""
        self.first_content_ms = self.elapsed_ms

    def settle(self, usage: Usage, http_status: int, error_code: str = "") -> None:
        """Charge `usage` at the price that was pinned at admission."""
        if self.is_closed:
            return
        self.is_closed = True
        has_cost = usage.total_tokens > 0
        cost = cost_of(usage, self.admission.attempt.price) if has_cost else 0
        self.cost_nanousd = min(cost, MAX_AMOUNT)
        tokens = min(usage.total_tokens, MAX_AMOUNT)
        self.admission.reservation.settle(tokens, self.cost_nanousd)
        self._close(UsageState.SETTLED, usage, http_status, error_code)

    def fail(self, usage: Usage, reason: Reason) -> None:
        """Charge `usage` of a request that the caller is refused for `reason`."""
        self.settle(usage, self._status_of(reason), reason.value)

    def release(self, reason: Reason) -> None:
        """Give everything back: nothing of the request was written upstream."""
        if self.is_closed:
            return
        self.is_closed = True
        self.admission.reservation.release()
        self._close(UsageState.RELEASED, NO_USAGE, self._status_of(reason), reason.value)

    def _status_of(self, reason: Reason) -> int:
        return self._book.status_of(reason, self.admission.call.dialect)

    def _close(self, state: UsageState, usage: Usage, http_status: int, error_code: str) -> None:
        event = self._event(state, usage, self.cost_nanousd, http_status, error_code)
        self._book.reporter.record_close(event)
        self._book.reporter.flush()

    def _event(
        self, state: UsageState, usage: Usage, cost_nanousd: int, http_status: int, error_code: str
    ) -> UsageEvent:
        it = self.admission
        call, attempt, principal = it.call, it.attempt, it.principal
        user, organization = principal.user, principal.user.organization
        is_device = principal.is_device
        at_ms, zone = it.reservation.admitted_at_ms, organization.time_zone
        calendar = self._book.calendar
        return UsageEvent(
            request_id=call.request_id,
            client_request_id=call.client_request_id,
            node_id=self._book.node_id,
            state=state,
            http_status=http_status,
            error_code=error_code,
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
            usage=usage,
            cost_nanousd=cost_nanousd,
            charged_nanousd=cost_nanousd,
            reserved_nanousd=it.demand.cost_nanousd,
            reserved_tokens=it.demand.tokens,
            price_id=attempt.price.price_id,
            price_revision=attempt.price.revision,
            usage_day=calendar.at(Window.DAY, zone, at_ms).period_id,
            usage_month=calendar.at(Window.MONTH, zone, at_ms).period_id,
            service_day=calendar.at(Window.DAY, _UTC, at_ms).period_id,
            config_revision=it.snapshot.position.revision,
            attempts=self.attempts,
            started_at_ms=it.started_at_ms,
            duration_ms=self.elapsed_ms,
            first_content_ms=self.first_content_ms,
            generations=_raised_generations(it),
        )


def _raised_generations(admission: Admission) -> tuple[tuple[str, int], ...]:
    layers = admission.plan.layers
    return tuple((layer.name, layer.reset_generation) for layer in layers if layer.reset_generation)
