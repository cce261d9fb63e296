"""Operations that wait for an answer of Redis."""

import asyncio

from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.operations import Answer, Operation


class Pending:
    """An operation that waits, and who waits for it."""

    __slots__ = ("attempts", "deadline", "future", "is_unknown", "operation")

    def __init__(
        self, operation: Operation, future: asyncio.Future[Answer] | None, deadline: float
    ) -> None:
        self.operation = operation
        self.future = future
        self.deadline = deadline
        self.attempts = 0
        # A call that carried it failed: it may or may not have taken effect.
        self.is_unknown = False

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
