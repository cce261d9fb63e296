"""Operations that wait for an answer of Redis, and for how long their callers do."""

import asyncio
from collections import deque
from typing import Final

from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.operations import Admit, Answer, Operation
from dataplane.limits.patience import TICK_SECONDS, AttentiveClock

# How long a caller waits while Redis answers nobody, retry included.
ADMIT_SECONDS: Final = 0.1


class Pending:
    """An operation that waits, and who waits for it."""

    __slots__ = ("attempts", "deadline", "future", "is_unknown", "operation")

    def __init__(
        self, operation: Operation, future: asyncio.Future[Answer] | None, deadline: float = 0.0
    ) -> None:
        self.operation = operation
        self.future = future
        self.deadline = deadline
        self.attempts = 0
        # A call that carried it failed: it may or may not have taken effect.
        self.is_unknown = False

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
