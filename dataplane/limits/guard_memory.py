"""A flood at the guards: refused from memory, without asking Redis each time, and at a pace.

Refusing is cheap, but whoever floods asks again at once, on many connections; and every other request
in this process passes the event loop some seven times, each time behind all of theirs. So refusals
beyond 150 a second wait for their turn, a second at most: a flood then gets some four percent of the loop.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dataplane.domain.guards import Check, Verdict

# A flood from more subjects than this is bound by a guard over all of them.
MAX_REMEMBERED: Final = 10_000
# A refusal takes about 0.25 ms of the loop.
REFUSALS_PER_S: Final = 150
# A client waits for an answer, and a connection that waits costs memory.
MAX_DELAY_S: Final = 1.0


class Guards(Protocol):
    """What counts."""

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Count one call with all of `checks` or with none."""


class GuardMemory:
    """Guards in front of guards: a subject that has to wait is refused here until then.

    Sound, because a wait only grows while others call: whoever was told to wait until an instant is
    not let through before it. One data plane's memory; the counting is theirs.
    """

    def __init__(self, guards: Guards, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        """Stand before `guards`; `clock_seconds` never goes back."""
        self._guards = guards
        self._clock_seconds = clock_seconds
        self._until: dict[Check, float] = {}
        self._next_refusal_at = 0.0

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Refuse what has to wait anyway, and ask about the rest. A refusal may take a second.

        Raises:
            LimitsUnavailable: The guards did not answer.
        """
        verdict = self._refused(checks)
        if verdict is None:
            verdict = await self._guards.admit(checks)
            if verdict.binding is not None:
                self._remember(verdict.binding, verdict.retry_after_ms)
        if verdict.binding is not None:
            await self._turn()
        return verdict

    async def _turn(self) -> None:
        """Wait for the turn of a refusal."""
        now = self._clock_seconds()
        turn = max(now, self._next_refusal_at)
        self._next_refusal_at = min(turn + 1 / REFUSALS_PER_S, now + MAX_DELAY_S)
        if turn > now:
            await asyncio.sleep(turn - now)

    def _refused(self, checks: Sequence[Check]) -> Verdict | None:
        """Return the longest of the waits that are known."""
        now = self._clock_seconds()
        waits = [
            (until - now, check) for check in checks if (until := self._until.get(check, now)) > now
        ]
        if not waits:
            return None
        seconds, binding = max(waits, key=lambda wait: wait[0])
        return Verdict(-int(-seconds * 1000 // 1), binding)

    def _remember(self, binding: Check, wait_ms: int) -> None:
        if len(self._until) >= MAX_REMEMBERED:
            now = self._clock_seconds()
            self._until = {check: until for check, until in self._until.items() if until > now}
            if len(self._until) >= MAX_REMEMBERED:
                return
        self._until[binding] = self._clock_seconds() + wait_ms / 1000
