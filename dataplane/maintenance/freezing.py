"""Each node's side of a rebuild: it stands still towards the ledger, and hands over what it has."""

import asyncio
from typing import Final

import structlog

from dataplane.domain.sums import Contribution, contribution_of
from dataplane.maintenance.handovers import Handovers, Hold
from dataplane.maintenance.ports import Limiter, Reporter

# Whoever rebuilds has read the sums by half of this, or gives up.
FROZEN_SECONDS: Final = 20.0
DRAIN_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
_HANDOVER_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class Freezer:
    """Watches for rebuilds while the counters are cold.

    From the handover on until the counters are there again, no record goes to the ledger: what
    the rebuild restores as in flight must not be in the sums that it reads a moment later.
    """

    def __init__(
        self,
        handovers: Handovers,
        limiter: Limiter,
        reporter: Reporter,
        node_id: str,
        frozen_seconds: float = FROZEN_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Speak for the process of `limiter` and `reporter`.

        While the counters are cold, Redis is asked for a rebuild every `look_seconds`.
        """
        self._handovers = handovers
        self._limiter = limiter
        self._reporter = reporter
        self._node_id = node_id
        self._frozen_seconds = frozen_seconds
        self._look_seconds = look_seconds
        self._loop = asyncio.get_running_loop()
        self._served = ""
        self._frozen_until: float | None = None
        self._failures = 0

    async def run(self) -> None:
        """Watch until cancelled; reporting goes on then."""
        changes = self._limiter.changes
        try:
            while True:
                seen = changes.number
                try:
                    await self._look()
                except Exception as error:
                    # The boundary of this task: it is tried again until the counters are there.
                    self._failures += 1
                    if self._failures in (1, 10) or self._failures % 100 == 0:
                        name, count = type(error).__name__, self._failures
                        _log.warning("handover_failed", error=name, failures=count)
                    self._served = ""
                else:
                    self._failures = 0
                # Only cold counters are rebuilt: before that there is nothing to ask Redis for.
                await changes.after(seen, self._look_seconds if self._limiter.is_cold else None)
        finally:
            self._thaw()

    async def _look(self) -> None:
        if not self._limiter.is_cold:
            self._thaw()
            return
        if self._frozen_until is not None and self._loop.time() >= self._frozen_until:
            _log.warning("rebuild_never_ended", rebuild_id=self._served)
            self._thaw()
        wanted = await self._handovers.wanted()
        if wanted is not None and wanted != self._served:
            async with asyncio.timeout(_HANDOVER_SECONDS):
                await self._hand_over(wanted)
            self._served = wanted

    async def _hand_over(self, rebuild_id: str) -> None:
        self._reporter.pause()
        self._frozen_until = self._loop.time() + self._frozen_seconds
        await self._reporter.drained(DRAIN_SECONDS)
        # One instant: between these two nothing else of this process runs.
        holds = [Hold.of(each) for each in self._limiter.in_flight()]
        unacknowledged = self._reporter.unacknowledged()
        contributions: list[Contribution] = []
        async for events in unacknowledged:
            made = (contribution_of(event) for event in events)
            contributions += (each for each in made if each is not None)
            await asyncio.sleep(0)
        await self._handovers.leave(rebuild_id, self._node_id, contributions, holds)
        _log.info(
            "counters_handed_over",
            rebuild_id=rebuild_id,
            unreported=len(contributions),
            in_flight=len(holds),
        )

    def _thaw(self) -> None:
        if self._frozen_until is not None:
            self._frozen_until = None
            self._reporter.resume()
