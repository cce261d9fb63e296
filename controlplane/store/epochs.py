"""Notices that the database is another one than before: restored from a backup, copied, or behind what nodes have.

Revisions of one epoch are compared by their numbers, so a database whose revisions went back must not go on in its epoch:
the same number would come to mean another content. It gets a new epoch, and every node everything. What gives it away:

* PostgreSQL says of itself which cluster and which database it is; the counter's row remembers it.
* A file beside SQLite remembers the latest epoch and its highest revision (`PositionMarker`); a running control plane
  remembers them too.
* A node has applied a revision that the database does not have, also when it is asked again a second later. A node could
  claim anything, so that makes one epoch an hour at most, whatever the number of control planes.

Two control planes that notice it at once make one epoch: the counter's row is locked, and looked at again.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from controlplane.domain.errors import DomainError
from controlplane.store.database import Store
from controlplane.store.database_states import (
    CLAIM_PAUSE,
    Cause,
    DatabaseState,
    begin_epoch,
    followed_a_claim_since,
    read_state,
    store_identity,
)
from controlplane.store.position_marker import PositionMarker, SeenPosition

POLL_S: Final = 1.0

# Another database comes with a new connection, whose maker says so at once; this is for what nobody noticed.
_IDENTITY_POLLS: Final = 60

_RANDOM_BYTES: Final = 6
_DEADLINE_S: Final = 5.0
_LAST_LOOK_DEADLINE_S: Final = 1.0
_ERRORS: Final = (DomainError, SQLAlchemyError, OSError, TimeoutError)

_log: Final = structlog.get_logger(__name__)


class Epochs:
    """Looks after the epoch of one database on behalf of one control plane."""

    def __init__(
        self,
        store: Store,
        marker: PositionMarker | None = None,
        *,
        poll_s: float = POLL_S,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Prepare; `marker` remembers between runs, for SQLite."""
        self._store = store
        self._marker = marker
        self._poll_s = poll_s
        self._random_bytes = random_bytes
        self._seen: SeenPosition | None = None
        self._marked: SeenPosition | None = None
        self._claimed: SeenPosition | None = None
        self._woken = asyncio.Event()
        self._is_identity_wanted = False

    async def start(self) -> None:
        """Compare the database with what is known of it; to be awaited before anything is read to be published.

        Raises:
            SQLAlchemyError, OSError, TimeoutError: The database cannot be used.
        """
        if self._marker is not None:
            self._marked = self._seen = await self._marker.read()
        await self._look(with_identity=True)
        await self._mark()

    def check(self) -> None:
        """Compare soon, also which database it is: the connection to it is a new one. Returns at once."""
        self._is_identity_wanted = True
        self._woken.set()

    def position_ahead(self, config_epoch: str, revision: int) -> None:
        """Hear that a node has applied `revision` of `config_epoch`, which is above what is published here.

        Returns at once. The database is asked twice; most claims only mean that this control plane has not read yet.
        """
        claimed = self._claimed
        if claimed and claimed.config_epoch == config_epoch and claimed.revision >= revision:
            return
        self._claimed = SeenPosition(config_epoch, revision)
        self._woken.set()

    @property
    def is_idle(self) -> bool:
        """Say whether there is no claim left to weigh."""
        return self._claimed is None

    async def run(self) -> None:
        """Watch the database until cancelled; then the marker is brought up to date. An outage is logged once."""
        is_failing, polls = False, 0
        try:
            while True:
                await self._wait()
                polls += 1
                self._is_identity_wanted |= polls % _IDENTITY_POLLS == 0
                try:
                    await self._round()
                except _ERRORS as error:
                    if not is_failing:
                        _log.warning("epoch not checked", error=type(error).__name__)
                    is_failing = True
                else:
                    is_failing = False
        finally:
            with contextlib.suppress(*_ERRORS):
                async with asyncio.timeout(_LAST_LOOK_DEADLINE_S):
                    await self._look(with_identity=False)
                await self._mark()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._woken.wait()
        self._woken.clear()

    async def _round(self) -> None:
        with_identity = self._is_identity_wanted
        self._is_identity_wanted = False
        try:
            await self._look(with_identity=with_identity)
        except _ERRORS:
            self._is_identity_wanted |= with_identity
            raise
        await self._mark()
        await self._weigh_claim()

    # ── The database itself ──────────────────────────────────────────────────────────────────

    async def _look(self, *, with_identity: bool) -> None:
        """Read where the database stands; begin a new epoch if it cannot go on in its own."""
        async with asyncio.timeout(_DEADLINE_S):
            async with self._store.reading() as session:
                state = await read_state(session, with_identity=with_identity)
            is_known = state.identity_to_store == state.stored_identity
            if not is_known or state.cause(self._seen) is not None:
                state = await self._settle(with_identity=with_identity)
        self._see(state)

    def _see(self, state: DatabaseState) -> None:
        position = SeenPosition(state.config_epoch, state.revision)
        if self._seen is None or not state.is_older_than(self._seen):
            self._seen = position

    async def _settle(self, *, with_identity: bool) -> DatabaseState:
        """Look again with the counter locked, and write what follows; return how it is then."""
        async with self._store.ledger() as session:
            state = await read_state(session, with_identity=with_identity, for_update=True)
            cause = state.cause(self._seen)
            if cause is None:
                await store_identity(session, state)
                return state
            known, epoch = (self._seen.revision, self._seen.config_epoch) if self._seen else (0, "")
            after = await begin_epoch(
                session,
                state,
                cause,
                highest_known=known,
                now=self._store.clock(),
                random=self._random_bytes(_RANDOM_BYTES),
                latest_known=epoch,
            )
        self._tell(state, after, cause, known)
        return after

    def _tell(
        self, before: DatabaseState, after: DatabaseState, cause: Cause, highest_known: int
    ) -> None:
        """Say loudly what happened, and wake who publishes."""
        _log.error(
            "the database was restored: API keys revoked since the backup are active again in it;"
            " nodes and Redis that remember them refuse them for 7 days; revoke them again",
            cause=str(cause),
            config_epoch=after.config_epoch,
            before=before.config_epoch,
            revision=after.revision,
            highest_known=highest_known,
        )
        self._store.changed.notify(after.revision)

    async def _mark(self) -> None:
        """Write the marker, if it says something else: at most once a poll."""
        if self._marker is None or self._seen is None or self._seen == self._marked:
            return
        await self._marker.write(self._seen)
        self._marked = self._seen

    # ── What nodes claim ─────────────────────────────────────────────────────────────────────

    async def _weigh_claim(self) -> None:
        """Ask the database twice, with a pause between, whether it is behind what a node has."""
        claimed = self._claimed
        if claimed is None:
            return
        if await self._is_behind(claimed):
            await asyncio.sleep(self._poll_s)
            if await self._is_behind(claimed):
                await self._follow_claim(claimed)
        if self._claimed == claimed:
            self._claimed = None

    async def _is_behind(self, claimed: SeenPosition) -> bool:
        # A session that may write is one of the primary, whatever answers those that only read.
        async with asyncio.timeout(_DEADLINE_S), self._store.ledger() as session:
            return (await read_state(session, with_identity=False)).is_behind(claimed)

    async def _follow_claim(self, claimed: SeenPosition) -> None:
        now = self._store.clock()
        async with asyncio.timeout(_DEADLINE_S), self._store.ledger() as session:
            state = await read_state(session, with_identity=False, for_update=True)
            if not state.is_behind(claimed):
                return
            if await followed_a_claim_since(session, now - CLAIM_PAUSE):
                _log.error(
                    "a node has a revision that the database does not have; a new epoch began for"
                    " that reason within the last hour, so none begins now",
                    claimed=claimed.revision,
                    revision=state.revision,
                )
                return
            after = await begin_epoch(
                session,
                state,
                Cause.NODE_AHEAD,
                highest_known=claimed.revision,
                now=now,
                random=self._random_bytes(_RANDOM_BYTES),
            )
        self._see(after)
        self._tell(state, after, Cause.NODE_AHEAD, claimed.revision)
