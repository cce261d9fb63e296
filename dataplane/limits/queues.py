"""What waits for Redis, in the order in which it leaves."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from dataplane.limits.operations import Admit, Balance
from dataplane.limits.pending import Pending, Undo

# A call of 64 admits of 13 layers keeps the server for 2 to 3 ms.
MAX_BATCH: Final = 64
# Of a full batch this many places are for the background, so that neither starves.
BACKGROUND_SHARE: Final = 16
MAX_WAITING_ADMITS: Final = 10_000
MAX_QUEUED: Final = 100_000


class Queues:
    """Two queues: admits and settles in their order, and what gives way to them.

    Attributes:
        dropped: How many operations found no room.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._first: deque[Pending] = deque()
        self._background: deque[Pending] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        """Return how many operations wait."""
        return len(self._first) + len(self._background)

    def __iter__(self) -> Iterator[Pending]:
        """Yield all of them."""
        yield from self._first
        yield from self._background

    @property
    def has_room_for_admits(self) -> bool:
        """Whether one more caller may wait."""
        return len(self._first) < MAX_WAITING_ADMITS

    def append_admit(self, pending: Pending) -> None:
        """Queue an admit; the caller has asked for room."""
        self._first.append(pending)

    def append(self, pending: Pending) -> None:
        """Queue an operation behind all admits so far."""
        if self._has_room(pending):
            self._first.append(pending)

    def append_later(self, pending: Pending) -> None:
        """Queue an operation that gives way to admits and settles."""
        if self._has_room(pending):
            self._background.append(pending)

    def undo(self, pending: Pending) -> None:
        """Queue what undoes an admit, whatever became of it; nothing for other operations."""
        if isinstance(pending.operation, Admit):
            self.append_later(Undo(pending.operation))

    def put_back(self, pending: Pending) -> None:
        """Queue an admit that is tried again, or an operation of a call that failed, first."""
        queue = self._first if isinstance(pending.operation, Admit) else self._background
        queue.appendleft(pending)

    def take(self) -> list[Pending]:
        """Return the next batch: first come, first served, with a share for the background."""
        share = max(MAX_BATCH - len(self._first), BACKGROUND_SHARE)
        batch: list[Pending] = []
        while self._background and len(batch) < share:
            batch.append(self._background.popleft())
        # After the background: a settle that waits there was queued earlier.
        while self._first and len(batch) < MAX_BATCH:
            pending = self._first.popleft()
            if pending.future is None or not pending.future.done():
                batch.append(pending)
            elif pending.is_unknown:
                self.undo(pending)
        return batch

    def refuse_readers(self, reason: str) -> None:
        """Fail those who wait for what cold counters cannot tell; the others stay."""
        self._first = deque(_without_readers(self._first, reason))
        self._background = deque(_without_readers(self._background, reason))

    def _has_room(self, pending: Pending) -> bool:
        if len(self) < MAX_QUEUED:
            return True
        # The ledger has the request; reconciling it raises the counter.
        self.dropped += 1
        pending.fail("too many operations wait for Redis")
        return False


def _without_readers(queue: Iterable[Pending], reason: str) -> Iterator[Pending]:
    for pending in queue:
        if not isinstance(pending.operation, Admit | Balance):
            yield pending
            continue
        pending.fail(reason)
        if pending.is_unknown and isinstance(pending.operation, Admit):
            yield Undo(pending.operation)
