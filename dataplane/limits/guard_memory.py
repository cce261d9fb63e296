"""What guards said a moment ago, so that a flood is refused without asking Redis each time."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from dataplane.domain.guards import Check, Verdict

# A flood from more subjects than this is bound by a guard over all of them.
MAX_REMEMBERED: Final = 10_000


class Guards(Protocol):
    """What counts."""

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Count one call with all of `checks` or with none."""


class GuardMemory:
    """Guards in front of guards: a subject that has to wait is refused here until then.

    Sound, because a wait only grows while others call: whoever was told to wait until an instant is
    not let through before it. One data plane's memory; the counting is theirs.
    """

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._loop = asyncio.get_running_loop()
        self._until: dict[Check, float] = {}

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Refuse what has to wait anyway, and ask about the rest.

        Raises:
            LimitsUnavailable: The guards did not answer.
        """
        refused = self._refused(checks)
        if refused is not None:
            return refused
        verdict = await self._guards.admit(checks)
        if verdict.binding is not None:
            self._remember(verdict.binding, verdict.retry_after_ms)
        return verdict

    def _refused(self, checks: Sequence[Check]) -> Verdict | None:
        """Return the longest of the waits that are known."""
        now = self._loop.time()
        waits = [
            (until - now, check) for check in checks if (until := self._until.get(check, now)) > now
        ]
        if not waits:
            return None
        seconds, binding = max(waits, key=lambda wait: wait[0])
        return Verdict(-int(-seconds * 1000 // 1), binding)

    def _remember(self, binding: Check, wait_ms: int) -> None:
        if len(self._until) >= MAX_REMEMBERED:
            now = self._loop.time()
            self._until = {check: until for check, until in self._until.items() if until > now}
            if len(self._until) >= MAX_REMEMBERED:
                return
        self._until[binding] = self._loop.time() + wait_ms / 1000
