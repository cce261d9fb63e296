"""A small ledger in this process: it keeps sums by the control plane's rules, and can be away."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

from dataplane.domain.calls import UsageEvent, UsageState
from dataplane.domain.counters import (
    CounterKind,
    CounterName,
    CounterSum,
    LedgerUnavailable,
    SubjectName,
)
from dataplane.domain.sums import amounts_of, contribution_of

BATCH = 1_000


class Book:
    """The `Ledger` of the maintainers of a test, and what reporters deliver to."""

    def __init__(self) -> None:
        self.events: dict[str, UsageEvent] = {}
        self.totals: dict[CounterName, int] = defaultdict(int)
        self.nodes: set[str] = set()
        self.is_away = False
        self.asked_for_sums = 0
        self.listed: list[tuple[frozenset[CounterKind], frozenset[SubjectName]]] = []
        # Called before a listing is answered: a test lets things happen meanwhile.
        self.before_listing: Callable[[], None] = lambda: None

    def take(self, events: Iterable[UsageEvent]) -> None:
        """Insert; only an abandoned row is updated, and only by a settled one."""
        self._must_be_there()
        for event in events:
            known = self.events.get(event.request_id)
            if known is not None:
                is_late_truth = (
                    known.state is UsageState.ABANDONED and event.state is UsageState.SETTLED
                )
                if not is_late_truth:
                    continue
                self._count(known, -1)
            self.events[event.request_id] = event
            self._count(event, 1)

    def sum_of(self, counter: CounterName) -> int:
        return self.totals.get(counter, 0)

    async def sums(self, counters: Sequence[CounterName]) -> list[int]:
        self._must_be_there()
        self.asked_for_sums += 1
        return [self.sum_of(each) for each in counters]

    async def list_sums(
        self,
        kinds: Collection[CounterKind],
        period_ids: Collection[str],
        subjects: Sequence[SubjectName] = (),
    ) -> AsyncIterator[list[CounterSum]]:
        self._must_be_there()
        self.listed.append((frozenset(kinds), frozenset(subjects)))
        self.before_listing()
        wanted, some = set(kinds), set(subjects)
        found: list[CounterSum] = []
        for counter, amount in list(self.totals.items()):
            if (
                amount
                and counter.period_id in period_ids
                and CounterKind(counter.subject_kind, counter.unit, counter.window) in wanted
                and (not some or SubjectName(counter.subject_kind, counter.subject_id) in some)
            ):
                found.append(CounterSum(counter, amount))
            if len(found) == BATCH:
                yield found
                found = []
        if found:
            yield found

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        self._must_be_there()
        return {each for each in request_ids if each in self.events}

    async def reporters(self) -> set[str]:
        self._must_be_there()
        return set(self.nodes)

    def _count(self, event: UsageEvent, sign: int) -> None:
        contribution = contribution_of(event)
        if contribution is not None:
            for counter, amount in amounts_of(contribution):
                self.totals[counter] += sign * amount

    def _must_be_there(self) -> None:
        if self.is_away:
            raise LedgerUnavailable("as the test wants it")
