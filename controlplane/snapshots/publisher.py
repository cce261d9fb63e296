"""Follows the database and publishes its newest consistent state.

A commit of this process wakes the publisher; those of other processes are found by a poll once a
second, which is the truth, whatever was missed. Changes wait 50 ms for company, 500 ms at most;
urgent ones (see `WorkingState`) do not wait. A state with a dangling reference is not published:
the previous one stays, and the log says so once.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.working import WorkingState
from controlplane.store.changes import Changes, changes_since
from controlplane.store.database import Store
from controlplane.store.tables import RevisionCounter
from controlplane.store.transactions import COUNTER_ID

QUIET_S: Final = 0.05
LONGEST_WAIT_S: Final = 0.5
POLL_S: Final = 1.0

# Replicas that were started together must not poll together for ever.
_POLL_JITTER: Final = 0.1

# Longer than a first load of a hundred thousand rows; a database that takes longer counts as away.
_LOAD_DEADLINE_S: Final = 30.0

_log: Final = structlog.get_logger(__name__)


class Publisher:
    """Keeps a working state beside the published one, and moves the one to the other."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        poll_s: float = POLL_S,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._poll_s = poll_s
        self._jitter = jitter
        self._woken = asyncio.Event()
        self._state = WorkingState()
        self._published: Snapshot | None = None
        self._reported_problems: list[str] = []
        self._is_failing = False
        self._waiting_since_s: float | None = None
        self._publish_at_s: float | None = None

    @property
    def position(self) -> Position:
        """The newest published position; an empty one before the first."""
        return self._published.position if self._published else Position()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the newest content that was read is not published: at most 20 lines, none when it is."""
        return tuple(self._reported_problems)

    async def load(self) -> None:
        """Read everything and publish it, or log why it cannot be published.

        Raises:
            SQLAlchemyError: The database cannot be read.
            TimeoutError: It does not answer.
        """
        await self._refresh()
        self._publish()

    async def run(self) -> None:
        """Follow the database until cancelled. An outage is logged once, and its end too."""
        stop_listening = self._store.changed.listen(lambda _revision: self._woken.set())
        try:
            await self._follow()
        finally:
            stop_listening()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        poll_at_s = loop.time()
        while True:
            deadline_s = min(poll_at_s, self._publish_at_s or poll_at_s)
            is_woken = await self._wait_until(deadline_s)
            if is_woken or loop.time() >= poll_at_s:
                await self._refresh_or_log()
                spread = self._poll_s * _POLL_JITTER
                poll_at_s = loop.time() + self._poll_s + self._jitter(-spread, spread)
            if self._publish_at_s is not None and loop.time() >= self._publish_at_s:
                self._publish()

    async def _wait_until(self, deadline_s: float) -> bool:
        """Wait for a commit; say whether there was one before the deadline."""
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    async def _refresh_or_log(self) -> None:
        try:
            await self._refresh()
        except Exception as error:  # task boundary: a fault of one load must not end the publisher
            if not self._is_failing:
                is_outage = isinstance(error, SQLAlchemyError | OSError | TimeoutError)
                _log.error("configuration not read", exc_info=not is_outage, error=repr(error))
            self._is_failing = True
            return
        if self._is_failing:
            _log.info("configuration read again")
        self._is_failing = False

    async def _refresh(self) -> None:
        async with asyncio.timeout(_LOAD_DEADLINE_S):
            changes, is_everything = await self._read()
        if changes is None:
            return
        state = WorkingState() if is_everything else self._state
        # Should it fail half-way, the next load begins with nothing.
        self._state = WorkingState()
        effect = await state.apply(changes)
        self._state = state
        self._fleet.config_epoch = state.config_epoch
        if not is_everything:
            self._fleet.announce(effect.revocations, datetime.now(UTC))
        self._schedule(effect.is_urgent)

    async def _read(self) -> tuple[Changes | None, bool]:
        """Return what changed, or None, in one read transaction, and whether it is everything."""
        state = self._state
        async with self._store.reading() as session:
            counter = await session.get_one(RevisionCounter, COUNTER_ID)
            known = state.revision if counter.config_epoch == state.config_epoch else -1
            if counter.revision == known:
                return None, False
            if 0 <= known < counter.revision:
                changes = await changes_since(session, known)
                if changes.is_complete:
                    return changes, known == 0
            return await changes_since(session, 0), True

    def _schedule(self, is_urgent: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if is_urgent:
            self._publish_at_s = now_s
        else:
            self._publish_at_s = min(now_s + QUIET_S, self._waiting_since_s + LONGEST_WAIT_S)

    def _publish(self) -> None:
        self._waiting_since_s = self._publish_at_s = None
        problems = self._state.problems()
        if problems != self._reported_problems and problems:
            _log.error(
                "configuration not published", revision=self._state.revision, problems=problems
            )
        self._reported_problems = problems
        if problems or (self._published and self._published.position == self._state.position):
            return
        self._published = self._state.snapshot()
        self._fleet.publish(self._published)
        _log.info(
            "configuration published",
            revision=self._published.position.revision,
            resources=len(self._published.resources),
        )
