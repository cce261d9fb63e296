"""Whether the counters can be asked: Redis answers, and what it has was rebuilt."""

import asyncio

from dataplane.changes import Changes
from dataplane.domain.breaker import REDIS_RULE, Breaker, after_failure, after_success, opened


class Availability:
    """The breaker on Redis, whether its counters are cold, and since when both are well.

    Counters that are cold are no failure: a server that answers keeps the breaker closed.

    Attributes:
        breaker: Opens when Redis fails to answer.
        is_cold: Whether the counters wait for being rebuilt, when last looked at.
        since: When they could be asked again after the last outage, or else were first asked for;
            by the loop's clock in seconds.
        changes: Noted whenever the breaker opens or closes, and when the counters turn cold or back.
    """

    def __init__(self) -> None:
        """Begin as available, now."""
        self._loop = asyncio.get_running_loop()
        self.breaker = Breaker(rule=REDIS_RULE)
        self.is_cold = False
        self.since = self._loop.time()
        self.changes = Changes()

    def __bool__(self) -> bool:
        """Tell whether admits are asked of Redis."""
        return not (self.is_cold or self.breaker.is_open)

    def open(self) -> None:
        """Open the breaker at once."""
        self.breaker = opened(self.breaker, self.now_ms())
        self.changes.note()

    def failed(self) -> bool:
        """Count a failure; tell whether it opened the breaker."""
        was_open = self.breaker.is_open
        self.breaker = after_failure(self.breaker, self.now_ms())
        has_opened = self.breaker.is_open and not was_open
        if has_opened:
            self.changes.note()
        return has_opened

    def succeeded(self, is_cold: bool) -> bool:
        """Count an answer, and whether the counters are cold; tell whether an outage is over."""
        if not self.breaker.is_open and is_cold == self.is_cold:
            return False
        was_available, was_cold = bool(self), self.is_cold
        self.breaker = after_success(self.breaker, self.now_ms())
        self.is_cold = is_cold
        is_over = bool(self) and not was_available
        if is_over:
            self.since = self._loop.time()
        if is_over or is_cold != was_cold:
            self.changes.note()
        return is_over

    def now_ms(self) -> int:
        """Return the breaker's time."""
        return int(self._loop.time() * 1000)
