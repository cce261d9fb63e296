"""Operations that wait for an answer of Redis, and for how long their callers do."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.counters import LEASE_MS
from dataplane.limits.operations import Admit, Answer, Operation, Release
from dataplane.limits.patience import TICK_SECONDS, AttentiveClock

# How long a caller waits while Redis answers nobody, retry included.
ADMIT_SECONDS: Final = 0.1
# An undo that took longer may come after a reaper. Half a lease: the clock of Redis is not ours.
LATE_UNDO_SECONDS: Final = LEASE_MS / 2000

_logger = logging.getLogger(__name__)


class Pending:
    """An operation that waits, and who waits for it.

    Attributes:
        attempts: How many calls carried it.
        unknown_until_ms: Of an admit that a failed call carried: it has taken effect, or may until
            then, by the server's clock; None: there was no such call.
    """

    __slots__ = ("attempts", "deadline", "future", "operation", "unknown_until_ms")

    def __init__(
        self, operation: Operation, future: asyncio.Future[Answer] | None, deadline: float = 0.0
    ) -> None:
        self.operation = operation
        self.future = future
        self.deadline = deadline
        self.attempts = 0
        self.unknown_until_ms: int | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether an earlier attempt may or may not have taken effect."""
        return self.unknown_until_ms is not None

    @property
    def is_abandoned(self) -> bool:
        """Whether somebody waited, but no longer does."""
        return self.future is not None and self.future.done()

    def answer(self, answer: Answer) -> bool:
        """Hand the answer to whoever waits; tell whether somebody did."""
        if self.future is None or self.future.done():
            return False
        self.future.set_result(answer)
        return True

    def fail(self, reason: str) -> None:
        """Tell whoever waits that there will be no answer."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(LimitsUnavailable(reason))


class Told(Pending):
    """An operation that nobody waits for; whoever queued it is told whether Redis answered it."""

    __slots__ = ("_on_end",)

    def __init__(self, operation: Operation, on_end: Callable[[bool], None]) -> None:
        super().__init__(operation, None)
        self._on_end = on_end

    def answer(self, answer: Answer) -> bool:
        """Say that it is done."""
        self._on_end(True)
        return False

    def fail(self, reason: str) -> None:
        """Say that it was given up."""
        self._on_end(False)


class Undo(Pending):
    """The release of an admit whose caller was never let in.

    A node that is cut off from Redis for longer than a lease comes too late: a reaper has charged the
    reservation and reported that its process died. Whoever asked for the admit hears of an undo that
    took so long, and of one that is given up (`Admit.on_late_undo`).
    """

    __slots__ = ("_admit", "_since")

    def __init__(self, admit: Admit) -> None:
        super().__init__(Release(admit.request_id, admit.bound), None)
        self._admit = admit
        self._since = asyncio.get_running_loop().time()

    def answer(self, answer: Answer) -> bool:
        """Note that Redis has answered; nobody waits for that."""
        if asyncio.get_running_loop().time() - self._since >= LATE_UNDO_SECONDS:
            self._tell()
        return False

    def fail(self, reason: str) -> None:
        """Note that it is given up: the reaper will find the reservation, if there is one."""
        self._tell()

    def _tell(self) -> None:
        if self._admit.on_late_undo is None:
            return
        try:
            self._admit.on_late_undo()
        except Exception:
            # Boundary: a fault of theirs must neither stop the limiter nor keep others from answers.
            _logger.exception("a late undo could not be told of")


class Deadlines:
    """Fails the admits whose callers have waited long enough.

    While Redis answers, nobody has: the queue moves. A turn of our own loop that was late counts
    as a short one (`patience`).
    """

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._loop = asyncio.get_running_loop()
        self._attention = AttentiveClock()
        # In the order of their deadlines.
        self._waiting: deque[Pending] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        # Until then nobody has waited too long: Redis has just answered.
        self._patient_until = 0.0

    def watch(self, operation: Admit, future: asyncio.Future[Answer]) -> Pending:
        """Return an admit whose caller waits from now on."""
        if self._alarm is None:
            self._attention.tick()
            self._alarm = self._loop.call_later(TICK_SECONDS, self._expire)
        pending = Pending(operation, future, self._attention.seconds() + ADMIT_SECONDS)
        self._waiting.append(pending)
        return pending

    def left(self, pending: Pending) -> float:
        """Return for how many seconds an admit's caller goes on waiting."""
        return max(pending.deadline, self._patient_until) - self._attention.seconds()

    def note_answer(self) -> None:
        """Be patient: Redis has answered somebody."""
        self._patient_until = self._attention.seconds() + ADMIT_SECONDS

    def close(self) -> None:
        """Watch no longer."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _expire(self) -> None:
        self._attention.tick()
        self._alarm = None
        while self._waiting:
            pending = self._waiting[0]
            if not pending.is_abandoned:
                if self.left(pending) > 0:
                    self._alarm = self._loop.call_later(TICK_SECONDS, self._expire)
                    return
                pending.fail("the counters did not answer in time")
            self._waiting.popleft()
