"""The one reporter of a process, as seen by each of several maintainers."""

from collections.abc import AsyncIterator, Callable, Sequence

from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import BudgetEvent
from dataplane.maintenance.ports import Reporter


class Pauses:
    """Who wants the reporter to stand still: it goes on when nobody does any more."""

    def __init__(self, reporter: Reporter) -> None:
        """Begin with nobody."""
        self.reporter = reporter
        self._wanted_by: set[str] = set()

    def pause(self, hash_tag: str) -> None:
        """Stand still, for the rebuild of one tag."""
        self._wanted_by.add(hash_tag)
        self.reporter.pause()

    def resume(self, hash_tag: str) -> None:
        """Go on as far as one tag is concerned."""
        self._wanted_by.discard(hash_tag)
        if not self._wanted_by:
            self.reporter.resume()


class ShareReporter:
    """What the maintainer of one tag sees; `concerns` tells by its record if a request is its."""

    def __init__(
        self, pauses: Pauses, hash_tag: str, concerns: Callable[[UsageEvent], bool]
    ) -> None:
        """Speak for the reporter of `pauses`."""
        self._pauses = pauses
        self._reporter = pauses.reporter
        self._hash_tag = hash_tag
        self._concerns = concerns

    @property
    def oldest_unreported_ms(self) -> int | None:
        """Return when the oldest request began that the ledger may not have, of whichever tag."""
        return self._reporter.oldest_unreported_ms

    def note_budget_event(self, event: BudgetEvent) -> None:
        """Deliver that a budget was used to 80 or 100 percent."""
        self._reporter.note_budget_event(event)

    def pause(self) -> None:
        """Send no more records until `resume`."""
        self._pauses.pause(self._hash_tag)

    def resume(self) -> None:
        """Go on after `pause`, unless another tag wants it to stand still."""
        self._pauses.resume(self._hash_tag)

    async def drained(self, deadline_seconds: float) -> bool:
        """Wait until everything sent is acknowledged; return whether it is."""
        return await self._reporter.drained(deadline_seconds)

    def unacknowledged(self) -> AsyncIterator[list[UsageEvent]]:
        """Return what is over and not known to be in the ledger, as far as it concerns the tag."""
        return self._concerning(self._reporter.unacknowledged())

    async def deliver_abandoned(
        self, events: Sequence[UsageEvent], deadline_seconds: float
    ) -> tuple[str, ...]:
        """Deliver requests whose process died; return the ids that the ledger never takes."""
        return await self._reporter.deliver_abandoned(events, deadline_seconds)

    async def _concerning(
        self, batches: AsyncIterator[list[UsageEvent]]
    ) -> AsyncIterator[list[UsageEvent]]:
        async for events in batches:
            yield [event for event in events if self._concerns(event)]
