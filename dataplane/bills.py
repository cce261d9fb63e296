"""What is said about one admitted request: to the limiter, and to the ledger."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from dataplane.admissions import Admission, Intake
from dataplane.domain.calls import NO_USAGE, Dialect, Usage, UsageEvent, UsageState
from dataplane.domain.limiting import MAX_AMOUNT, LayerPlan
from dataplane.domain.periods import Calendar
from dataplane.domain.prices import cost_of
from dataplane.domain.refusals import Reason
from dataplane.usage_events import PlanFacts, admitted, draft_of


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
class BillBook:
    """What every bill of this process is written with.

    `clock_ms` is Unix milliseconds; `status_of` is the HTTP status that callers of a dialect get.
    """

    reporter: Reporter
    node_id: str
    clock_ms: Callable[[], int]
    status_of: Callable[[Reason, Dialect], int]
    calendar: Calendar = field(default_factory=Calendar)
    _facts: WeakKeyDictionary[LayerPlan, PlanFacts] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )

    def draft_for(self, intake: Intake) -> UsageEvent:
        """Return what is known of a request before it is let in, for whoever finds it left behind."""
        return draft_of(intake, self._facts_of(intake.plan), self.node_id, self.calendar)

    def retraction_of(self, draft: UsageEvent) -> "Retraction":
        """Return what takes back that a request of this draft was abandoned, should anybody say so."""
        return Retraction(self, draft)

    def bill_for(self, admission: Admission) -> "Bill":
        """Return the bill of a request that was just let in."""
        record = admitted(admission, self._facts_of(admission.plan), self.calendar)
        return Bill(admission, self, record)

    def _facts_of(self, plan: LayerPlan) -> PlanFacts:
        facts = self._facts.get(plan)
        if facts is None:
            facts = self._facts[plan] = PlanFacts.of(plan)
        return facts


class Retraction:
    """Says of a request that was not let in that nobody owes anything for it.

    The counters may hold a request whose caller was told that they cannot be asked: the answer was
    lost. A node that cannot give it back within a lease is taken for dead, and others report the
    request as abandoned, charged in full. Such a record yields to this one, and without one this
    counts nowhere.
    """

    __slots__ = ("_book", "_draft", "is_void")

    def __init__(self, book: BillBook, draft: UsageEvent) -> None:
        """Take back what `draft` may have been reported as; made by `BillBook`."""
        self._book = book
        self._draft = draft
        # The request was let in after all, and has a record of its own.
        self.is_void = False

    def record(self) -> None:
        """Record that the request was released, unless it was let in without the counters."""
        if self.is_void:
            return
        reason, draft = Reason.LIMITS_UNAVAILABLE, self._draft
        event = msgspec.structs.replace(
            draft,
            state=UsageState.RELEASED,
            usage=NO_USAGE,
            cost_nanousd=0,
            charged_nanousd=0,
            http_status=self._book.status_of(reason, draft.dialect),
            error_code=reason.value,
        )
        self._book.reporter.record_close(event)
        self._book.reporter.flush()


class Bill:
    """The end of one admitted request; it comes exactly once.

    Closing is a plain call: the settlement is in the limiter's queue and the record in the file
    when it returns, so that a caller's next request finds its slot and its money.
    """

    __slots__ = (
        "_book",
        "_record",
        "admission",
        "attempts",
        "cost_nanousd",
        "first_content_ms",
        "is_closed",
        "is_revoked",
    )

    def __init__(self, admission: Admission, book: "BillBook", record: UsageEvent) -> None:
        """Begin with `record`, which says that the request was let in; made by `BillBook`."""
        self.admission = admission
        self.attempts = 0
        self.cost_nanousd = 0
        self.first_content_ms = 0
        self.is_closed = False
        self.is_revoked = False
        self._book = book
        self._record = record

    @property
    def elapsed_ms(self) -> int:
        """Return the milliseconds since the request was read."""
        return max(0, self._book.clock_ms() - self.admission.started_at_ms)

    def open(self) -> None:
        """Record, in the file, that bytes are about to go upstream.

        Until it is closed the record stands for a request whose process died: charged in full.
        """
        self.attempts += 1
        reserved = self.admission.reserved_nanousd
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
        # Nothing that a provider may say is refused here: a bill that is closed is not closed again.
        self.cost_nanousd = _countable(cost)
        tokens = _countable(usage.total_tokens)
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
        return msgspec.structs.replace(
            self._record,
            state=state,
            usage=usage,
            cost_nanousd=cost_nanousd,
            charged_nanousd=cost_nanousd,
            http_status=http_status,
            error_code=error_code,
            attempts=self.attempts,
            duration_ms=self.elapsed_ms,
            first_content_ms=self.first_content_ms,
        )


def _countable(amount: int) -> int:
    """Return the amount that counters can count which is closest to this one."""
    return max(0, min(amount, MAX_AMOUNT))
