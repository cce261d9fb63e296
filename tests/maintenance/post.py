"""A reporter in this process: what it is told waits here until the book has it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import BudgetEvent
from dataplane.domain.request_ids import began_at_ms
from tests.maintenance.book import Book


class Post:
    """The `Reporter` of one node; delivers all the time unless it is paused or `holds_back`."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.waiting: dict[str, UsageEvent] = {}
        self.in_flight: set[str] = set()
        self.budget_events: list[BudgetEvent] = []
        self.holds_back = False
        self.is_paused = False
        self.pauses = 0
        self.is_dying = False
        self.abandoned: list[str] = []

    @property
    def oldest_unreported_ms(self) -> int | None:
        return min(map(began_at_ms, {*self.in_flight, *self.waiting}), default=None)

    def begin(self, request_id: str) -> None:
        self.in_flight.add(request_id)

    def record(self, event: UsageEvent) -> None:
        self.in_flight.discard(event.request_id)
        self.waiting[event.request_id] = event

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            if not (self.holds_back or self.is_paused or self.book.is_away):
                self.deliver()

    def deliver(self) -> None:
        self.book.take(self.waiting.values())
        self.waiting.clear()

    def note_budget_event(self, event: BudgetEvent) -> None:
        self.budget_events.append(event)

    def pause(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.is_paused = False

    async def drained(self, deadline_seconds: float) -> bool:
        return True

    def unacknowledged(self) -> AsyncIterator[list[UsageEvent]]:
        return self._read(list(self.waiting.values()))

    async def deliver_abandoned(
        self, events: Sequence[UsageEvent], deadline_seconds: float
    ) -> tuple[str, ...]:
        if self.is_dying:
            # The process is gone before anything is sent.
            await asyncio.Event().wait()
        self.book.take(events)
        self.abandoned += [event.request_id for event in events]
        return ()

    async def _read(self, events: list[UsageEvent]) -> AsyncIterator[list[UsageEvent]]:
        if events:
            yield events
