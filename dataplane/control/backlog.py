"""What the ledger does not have yet, from a request's first byte upstream to its acknowledgement."""

from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.budget_events import BudgetEvents, refuse
from dataplane.control.spool import Spool
from dataplane.control.spool_recovery import Recovered
from dataplane.control.usage_records import record_from
from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import BudgetEvent
from dataplane.domain.request_ids import began_at_ms

MAX_BATCH_RECORDS: Final = 500
# Well under what a receiver takes (4 MiB), whatever callers put into their texts.
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """What is sent and acknowledged as one."""

    request_ids: tuple[str, ...] = ()
    records: tuple[pb.UsageRecord, ...] = field(default=(), repr=False)
    budget_events: tuple[BudgetEvent, ...] = ()

    @property
    def size(self) -> int:
        """Return how much of it must be told until it is acknowledged."""
        return len(self.request_ids) + len(self.budget_events)

    def singly(self) -> "Iterator[Batch]":
        """Yield its parts, each as a batch of its own."""
        for request_id, record in zip(self.request_ids, self.records, strict=True):
            yield Batch((request_id,), (record,))
        for event in self.budget_events:
            yield Batch(budget_events=(event,))


class Backlog:
    """Requests and budget events on their way to the ledger, in the order in which they came.

    A request is in flight, then it waits, then it is on the way; what was on the way of a stream
    that ended is to be sent again, before the others. Belongs to one event loop; only
    `next_batch` and `unacknowledged` wait for anything.
    """

    def __init__(self, spool: Spool, recovered: Recovered, max_events_in_memory: int) -> None:
        """Begin with what earlier processes left in `spool`."""
        self._spool = spool
        self._max_in_memory = max_events_in_memory
        self._in_flight: set[str] = set()
        self.in_memory = 0
        # None: the event is in the spool only.
        self.waiting: dict[str, UsageEvent | None] = dict.fromkeys(recovered.closes)
        self.budget_events = BudgetEvents()
        self.on_the_way: deque[tuple[int, Batch]] = deque()
        self._again: deque[Batch] = deque()
        # So much is sent one by one, to find what the ledger never takes.
        self.suspects = 0
        # The oldest id that is not in the ledger, empty for none; None: to be looked for.
        self._oldest: str | None = None

    @property
    def unreported_records(self) -> int:
        """Return the requests that are over and not known to be in the ledger."""
        return len(self.waiting) + sum(len(batch.request_ids) for batch in self._batches())

    @property
    def oldest_began_at_ms(self) -> int | None:
        """Return when the oldest request began, Unix milliseconds, that the ledger may not have.

        Requests in flight count: the ledger has none of them. None when there is no request.
        """
        if self._oldest is None:
            sent = (batch.request_ids for batch in self._batches())
            self._oldest = min(chain(self._in_flight, self.waiting, *sent), default="")
        return began_at_ms(self._oldest) if self._oldest else None

    @property
    def has_batch(self) -> bool:
        """Return whether there is something to be sent."""
        return bool(self.waiting or self._again or (self.budget_events and not self.suspects))

    @property
    def has_full_batch(self) -> bool:
        """Return whether waiting for company makes no sense."""
        return bool(self._again) or len(self.waiting) >= MAX_BATCH_RECORDS

    def begin(self, request_id: str) -> None:
        """Note a request that is about to go upstream."""
        self._in_flight.add(request_id)
        self._note_oldest(request_id)

    def add(self, event: UsageEvent) -> None:
        """Note a request that is over; its event is in the spool."""
        request_id = event.request_id
        self._in_flight.discard(request_id)
        if self.in_memory < self._max_in_memory and request_id not in self.waiting:
            self.in_memory += 1
            self.waiting[request_id] = event
        else:
            self.waiting.setdefault(request_id, None)
        self._note_oldest(request_id)

    async def next_batch(self) -> Batch | None:
        """Take the next batch; None when what was next turned out to be unreadable.

        Nothing waits between taking and returning: a batch is always somewhere.

        Raises:
            OSError: The disk cannot be read now.
        """
        if self._again:
            return self._again.popleft()
        head = dict(islice(self.waiting.items(), MAX_BATCH_RECORDS))
        on_disk = [request_id for request_id, event in head.items() if event is None]
        read = (
            {event.request_id: event for event in await self._spool.read_closes(on_disk)}
            if on_disk
            else {}
        )
        request_ids: list[str] = []
        records: list[pb.UsageRecord] = []
        size = 0
        for request_id, event in head.items():
            if event is None and request_id not in read:
                del self.waiting[request_id]
                self._oldest = None
                continue
            record = record_from(event or read[request_id])
            size += record.ByteSize()
            if records and size > MAX_BATCH_BYTES:
                break
            del self.waiting[request_id]
            self.in_memory -= event is not None
            request_ids.append(request_id)
            records.append(record)
        # Not while a record is looked for that can never be stored: a batch is that record then.
        budget_events = () if self.suspects else self.budget_events.take()
        batch = Batch(tuple(request_ids), tuple(records), budget_events)
        return batch if batch.size else None

    def put_back(self, batch: Batch) -> None:
        """Give back what was taken last and not sent."""
        self._again.appendleft(batch)

    def note_sent(self, batch_id: int, batch: Batch) -> None:
        """Note that a batch is about to be sent."""
        self.on_the_way.append((batch_id, batch))

    def acknowledge(self, batch_id: int) -> bool:
        """Forget the oldest batch on the way; return whether it is the one that was named."""
        if not self.on_the_way or batch_id != self.on_the_way[0][0]:
            return False
        _, batch = self.on_the_way.popleft()
        self._spool.acknowledge(batch.request_ids)
        self._forget_oldest(batch)
        self.suspects = max(0, self.suspects - batch.size)
        return True

    def find_refused(self) -> None:
        """Something on the way can never be stored: put it aside, or send all singly to find it."""
        if not (self.suspects and self.on_the_way):
            self.suspects = sum(batch.size for _, batch in self.on_the_way)
            return
        _, batch = self.on_the_way.popleft()
        self.suspects -= 1
        self._forget_oldest(batch)
        refuse(batch.budget_events)
        for request_id in batch.request_ids:
            self._spool.refuse(request_id)

    def send_again(self) -> None:
        """Take back what was on the way of a stream that ended."""
        batches = [batch for _, batch in self.on_the_way if batch.size] + list(self._again)
        self.on_the_way.clear()
        if self.suspects:
            batches = [single for batch in batches for single in batch.singly()]
        self._again = deque(batches)

    def unacknowledged(self) -> AsyncIterator[list[UsageEvent]]:
        """Return the events of all requests that are over and not known to be in the ledger.

        They are those of the moment of this call, read in batches of at most 500; what is
        acknowledged or found damaged before it is read is left out.

        Raises:
            OSError: While it is read: the disk cannot be read now.
        """
        sent = (batch.request_ids for batch in self._batches())
        events = dict.fromkeys(chain.from_iterable(sent), None) | self.waiting
        return self._read(events)

    async def _read(self, events: dict[str, UsageEvent | None]) -> AsyncIterator[list[UsageEvent]]:
        names = list(events)
        for start in range(0, len(names), MAX_BATCH_RECORDS):
            few = names[start : start + MAX_BATCH_RECORDS]
            known = [event for name in few if (event := events[name]) is not None]
            on_disk = [name for name in few if events[name] is None]
            if found := known + (await self._spool.read_closes(on_disk) if on_disk else []):
                yield found

    def _batches(self) -> Iterator[Batch]:
        yield from (batch for _, batch in self.on_the_way)
        yield from self._again

    def _note_oldest(self, request_id: str) -> None:
        if self._oldest is not None and (not self._oldest or request_id < self._oldest):
            self._oldest = request_id

    def _forget_oldest(self, batch: Batch) -> None:
        if self._oldest in batch.request_ids:
            self._oldest = None
