"""Deadlines on Redis that run only while this process could have noticed an answer.

When a thousand callers arrive at once, a turn of the event loop takes hundreds of milliseconds.
At its end the answer of Redis and the end of a deadline are seen together, and the deadline would
win: callers would be refused although Redis answered at once. A late turn counts as a short one.
"""

import asyncio
from types import TracebackType
from typing import Final

TICK_SECONDS: Final = 0.01
# What one tick counts at most: the loop may be this late without standing the clock still.
_MOST_SECONDS: Final = 2 * TICK_SECONDS


class AttentiveClock:
    """Counts the seconds in which the event loop turned; somebody calls `tick` at every tick."""

    __slots__ = ("_at", "_loop", "_seconds")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = 0.0
        self._at = self._loop.time()

    def seconds(self) -> float:
        """Return the time on this clock."""
        return self._seconds + min(self._loop.time() - self._at, _MOST_SECONDS)

    def tick(self) -> float:
        """Go on, and return the time on this clock."""
        self._seconds = self.seconds()
        self._at = self._loop.time()
        return self._seconds


class Deadline:
    """`async with Deadline(seconds)`: a timeout on an attentive clock.

    Raises:
        TimeoutError: The block did not end in that time; it was cancelled.
    """

    __slots__ = ("_clock", "_handle", "_loop", "_seconds", "_timeout")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._clock = AttentiveClock()
        self._arm(0.0)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _arm(self, elapsed: float) -> None:
        wait = min(TICK_SECONDS, self._seconds - elapsed)
        self._handle = self._loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        elapsed = self._clock.tick()
        if elapsed >= self._seconds:
            self._timeout.reschedule(self._loop.time())
        else:
            self._arm(elapsed)
