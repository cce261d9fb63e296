"""Follows the database and publishes its newest consistent state.

A commit of this process wakes the publisher, and so does whoever hears of one elsewhere (`wake`); the others are found by a
poll once a second, which is the truth, whatever was missed. Changes wait 50 ms for company, 500 ms at most;
urgent ones (see `urgency`) do not wait. A state with a dangling reference is not published:
the previous one stays, and the log says so once. Neither is one that is older than what was published of its epoch: then
the database was set back, and it takes a new epoch to go on.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.kinds import Kind
from controlplane.snapshots.collecting import keep_out_of_collections, not_collecting
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.orders import TOLD_ACROSS_EPOCHS, order_from_row
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.working import WorkingState
from controlplane.store.changes import Changes, changes_since, everything
from controlplane.store.database import Store
from controlplane.store.tables import NodeIdentity, RevisionCounter
from controlplane.store.transactions import COUNTER_ID

QUIET_S: Final = 0.05
LONGEST_WAIT_S: Final = 0.5
POLL_S: Final = 1.0

# Replicas that were started together must not poll together for ever.
_POLL_JITTER: Final = 0.1

# So long the next rows may take to come; a database that takes longer counts as away. Everything may take as long as it
# has rows.
_READ_DEADLINE_S: Final = 30.0

_BANNED: Final = "this node is banned"

_What = Enum("_What", ["NOTHING", "EVERYTHING"])
_NOTHING: Final = _What.NOTHING
_EVERYTHING: Final = _What.EVERYTHING

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
        self._is_set_back = False
        self._waiting_since_s: float | None = None
        self._publish_at_s: float | None = None
        fleet.on_behind = self.wake

    @property
    def position(self) -> Position:
        """The newest published position; an empty one before the first."""
        return self._published.position if self._published else Position()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the newest content that was read is not published: at most 20 lines, none when it is."""
        return tuple(self._reported_problems)

    def wake(self) -> None:
        """Have the database read now: somebody heard of a change."""
        self._woken.set()

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
        stop_listening = self._store.changed.listen(lambda _revision: self.wake())
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
                self._publish_or_log()

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
        begun_at_s = self._fleet.now_s()
        async with asyncio.timeout(_READ_DEADLINE_S) as deadline, self._store.reading() as session:
            changes = await self._read_changes(session)
            if changes is _EVERYTHING:
                await self._load(session, deadline)
        if isinstance(changes, Changes):
            await self._apply(changes)
        if self._state.config_epoch == self._fleet.current.config_epoch:
            # A later epoch that is not published, or not yet, may be what a node has.
            self._fleet.note_read(begun_at_s)

    async def _read_changes(self, session: AsyncSession) -> Changes | _What:
        """Return what changed, that nothing did, or that only everything can be told."""
        state = self._state
        counter = await session.get_one(RevisionCounter, COUNTER_ID)
        if self._is_set_back_to(counter):
            return _NOTHING
        if counter.config_epoch != state.config_epoch or counter.revision < state.revision:
            return _EVERYTHING
        if counter.revision == state.revision:
            return _NOTHING
        changes = await changes_since(session, state.revision)
        return changes if changes.is_complete and state.revision else _EVERYTHING

    async def _load(self, session: AsyncSession, deadline: asyncio.Timeout) -> None:
        state = WorkingState()
        with not_collecting():
            await state.load(self._noted(everything(session), deadline))
            keep_out_of_collections(len(state))
        self._take_over(state, is_urgent=state.config_epoch != self._fleet.config_epoch)

    async def _noted(
        self, parts: AsyncIterator[Changes], deadline: asyncio.Timeout
    ) -> AsyncIterator[Changes]:
        """Pass parts on, with what concerns the fleet noted; each puts the deadline off."""
        loop = asyncio.get_running_loop()
        async for part in parts:
            self._note(part)
            yield part
            deadline.reschedule(loop.time() + _READ_DEADLINE_S)

    async def _apply(self, changes: Changes) -> None:
        # Should it fail half-way, the next load begins with nothing.
        state, self._state = self._state, WorkingState()
        self._note(changes)
        self._take_over(state, is_urgent=await state.apply(changes))

    def _take_over(self, state: WorkingState, *, is_urgent: bool) -> None:
        self._state = state
        self._fleet.config_epoch = state.config_epoch
        self._schedule(is_urgent)

    def _note(self, changes: Changes) -> None:
        """Tell of revocations and bans, which wait for nothing."""
        orders = [order_from_row(row, changes.config_epoch) for row in changes.revocations]
        if changes.config_epoch == self._fleet.config_epoch:
            self._fleet.announce(orders)
        else:
            # Everything is on its way to everybody, to some after others: what was revoked last overtakes it.
            self._fleet.remember(orders[:-TOLD_ACROSS_EPOCHS])
            self._fleet.announce(orders[-TOLD_ACROSS_EPOCHS:])
        self._apply_bans(changes)

    def _apply_bans(self, changes: Changes) -> None:
        for row in changes.rows[Kind.NODE]:
            if isinstance(row, NodeIdentity) and row.banned_at is not None:
                self._fleet.refuse(row.id, _BANNED)
            else:
                self._fleet.readmit(row.id)
        for stone in changes.tombstones:
            if stone.kind == Kind.NODE:
                self._fleet.readmit(stone.id)

    def _is_set_back_to(self, counter: RevisionCounter) -> bool:
        """Say whether the database is older than what was published of the same epoch, and log that once."""
        published = self.position
        is_set_back = (
            counter.config_epoch == published.config_epoch and counter.revision < published.revision
        )
        if is_set_back:
            if not self._is_set_back:
                _log.error(
                    "the database was set back",
                    revision=counter.revision,
                    published=published.revision,
                )
            if self._fleet.on_position_ahead is not None:
                self._fleet.on_position_ahead(published)
        self._is_set_back = is_set_back
        return is_set_back

    def _schedule(self, is_urgent: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if is_urgent:
            self._publish_at_s = now_s
        else:
            self._publish_at_s = min(now_s + QUIET_S, self._waiting_since_s + LONGEST_WAIT_S)

    def _publish_or_log(self) -> None:
        try:
            self._publish()
        except Exception:  # task boundary: a fault of one publication must not be the last one
            _log.exception("configuration not offered to every node")
            self._publish_at_s = asyncio.get_running_loop().time() + self._poll_s

    def _publish(self) -> None:
        self._waiting_since_s = self._publish_at_s = None
        if not self._state.revision:
            # What was to be published was lost with changes that could not be taken in; it is read anew.
            return
        problems = self._state.problems()
        if problems != self._reported_problems and problems:
            _log.error(
                "configuration not published", revision=self._state.revision, problems=problems
            )
        self._reported_problems = problems
        if problems or (self._published and self._published.position == self._state.position):
            return
        snapshot = self._state.snapshot()
        self._fleet.publish(snapshot)
        self._published = snapshot
        _log.info(
            "configuration published",
            revision=snapshot.revision,
            resources=snapshot.everything.count,
        )
