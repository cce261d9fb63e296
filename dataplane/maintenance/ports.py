"""What maintenance needs of the limiter, of Redis and of the control plane."""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

from redis.asyncio import Redis

from dataplane.changes import Changes
from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import (
    BudgetEvent,
    CounterKind,
    CounterName,
    CounterSum,
    SubjectName,
)
from dataplane.limits.counters import Keyspace
from dataplane.limits.operations import Answer, Operation
from dataplane.limits.reservation import Held


class Desk(Protocol):
    """A way to Redis of maintenance's own; several tasks may use it.

    Whatever it does ends within a second or raises RedisError or OSError. `client` is for plain
    commands and answers in bytes.
    """

    keyspace: Keyspace
    client: Redis

    async def run(self, *operations: Operation) -> list[Answer]:
        """Run operations in their order; return an answer for each."""

    async def run_id(self) -> str:
        """Return what names this run of the server."""

    async def is_cold(self) -> bool:
        """Return whether the counters wait for being rebuilt, asked now."""


class Limiter(Protocol):
    """What counts the requests of this process."""

    @property
    def is_available(self) -> bool:
        """Return whether admits are asked of Redis."""

    @property
    def is_cold(self) -> bool:
        """Return whether Redis answers, but its counters wait for being rebuilt."""

    @property
    def available_since(self) -> float:
        """Return when the last outage ended, by the loop's clock in seconds; see `is_available` first."""

    @property
    def changes(self) -> Changes:
        """Return what is noted whenever one of these may have changed."""

    def in_flight(self) -> Sequence[Held]:
        """Return what this process' requests in flight hold at this moment."""


class Reporter(Protocol):
    """What delivers records of requests to the ledger."""

    @property
    def oldest_unreported_ms(self) -> int | None:
        """Return when the oldest request began that the ledger may not have, in flight or over.

        Unix milliseconds by the clock of this process; None when there is none.
        """

    def note_budget_event(self, event: BudgetEvent) -> None:
        """Deliver that a budget was used to 80 or 100 percent; a repetition costs nothing."""

    def pause(self) -> None:
        """Send no more records until `resume`."""

    def resume(self) -> None:
        """Go on after `pause`."""

    async def drained(self, deadline_seconds: float) -> bool:
        """Wait until everything sent is acknowledged; return whether it is."""

    def unacknowledged(self) -> AsyncIterator[list[UsageEvent]]:
        """Return what is over and not known to be in the ledger, at the moment of this call."""

    async def deliver_abandoned(
        self, events: Sequence[UsageEvent], deadline_seconds: float
    ) -> tuple[str, ...]:
        """Deliver requests whose process died; return the ids that the ledger never takes.

        When it returns, the ledger has the others. It may be repeated.

        Raises:
            LedgerUnavailable: Not all of them are known to be there.
        """


class Ledger(Protocol):
    """What a control plane says; every method raises `LedgerUnavailable` when none answers in time."""

    async def sums(self, counters: Sequence[CounterName]) -> list[int]:
        """Return the sums of `counters`, in their order."""

    def list_sums(
        self,
        kinds: Collection[CounterKind],
        period_ids: Collection[str],
        subjects: Sequence[SubjectName] = (),
    ) -> AsyncIterator[list[CounterSum]]:
        """Yield every sum other than 0 of kinds, periods and subjects (none: all), of one instant."""

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        """Return which of these requests the ledger has."""

    async def reporters(self) -> set[str]:
        """Return the ids of the data planes that are connected to a control plane."""
