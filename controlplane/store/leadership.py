"""One of several control planes does the periodic work: the one that holds an advisory lock of the database.

The lock belongs to a session, so it is free as soon as the leader's connection is gone. A leader that stands still
without losing its connection is noticed too: it speaks twice a second, and the server ends a session that is silent for
3 s. Its own deadline is shorter, so it stops leading before another one begins.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import asyncpg
import structlog

from controlplane.store.connections import CONNECTION_ERRORS, own_connection
from controlplane.store.database import Store

CHECK_S: Final = 0.5
"""How often the leader makes sure that it is, and the others try to become it."""

RENEWAL_DEADLINE_S: Final = 1.5
SILENCE_MS: Final = 3_000

# A work that failed or ended begins anew after this time, here or elsewhere.
_PAUSE_S: Final = 1.0

# A statement of the work that is being cancelled may take so long to end.
_FAREWELL_S: Final = 2.0

_SESSION: Final = (
    f"SET idle_session_timeout = {SILENCE_MS}",
    # For servers before 14, which do not know that: at least a host that is gone is noticed.
    "SET tcp_keepalives_idle = 2",
    "SET tcp_keepalives_interval = 1",
    "SET tcp_keepalives_count = 2",
)

_log: Final = structlog.get_logger(__name__)


class Leadership:
    """The right to do a kind of work, that one control plane of a database has at a time. On SQLite it is always ours."""

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        check_s: float = CHECK_S,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepare to compete for the work called `name`, the same on every control plane."""
        self.name = name
        self._store = store
        self._check_s = check_s
        self._jitter = jitter
        self._is_leader = False

    @property
    def is_leader(self) -> bool:
        """Say whether the work is this control plane's now."""
        return self._is_leader

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work()` whenever this control plane leads, until cancelled.

        It is cancelled when the lead is lost, and run anew when it is won again; a fault of it is logged and gives the
        lead away.
        """
        was_away = False
        while True:
            try:
                if self._store.is_shared:
                    async with own_connection(self._store) as connection:
                        await self._win(connection)
                        was_away = False
                        await self._lead(work, connection)
                else:
                    await self._lead(work, None)
            except CONNECTION_ERRORS as error:
                if not was_away:
                    _log.warning("no lead", work=self.name, error=type(error).__name__)
                was_away = True
            await self._pause(_PAUSE_S)

    async def _pause(self, about_s: float) -> None:
        await asyncio.sleep(self._jitter(about_s * 0.8, about_s * 1.2))

    async def _win(self, connection: asyncpg.Connection) -> None:
        """Return when the lock is held by this connection."""
        for statement in _SESSION:
            try:
                await connection.execute(statement, timeout=RENEWAL_DEADLINE_S)
            except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
                _log.debug("a session cannot be set up so", statement=statement)
        key = lock_key(self.name)
        statement = "SELECT pg_try_advisory_lock($1)"
        while not await connection.fetchval(statement, key, timeout=RENEWAL_DEADLINE_S):
            await self._pause(self._check_s)

    async def _lead(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        connection: asyncpg.Connection | None,
    ) -> None:
        self._is_leader = True
        _log.info("leads", work=self.name)
        task = asyncio.create_task(work())
        try:
            await self._until_over(task, connection)
        finally:
            self._is_leader = False
            await self._end(task)
            _log.info("does not lead any more", work=self.name)

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=_FAREWELL_S)
        if not task.done():
            _log.error("work does not end", work=self.name)
        elif not task.cancelled() and task.exception() is not None:
            _log.error("work failed", work=self.name, exc_info=task.exception())

    async def _until_over(
        self, task: asyncio.Task[None], connection: asyncpg.Connection | None
    ) -> None:
        """Return when the work ended or the connection is lost.

        Raises:
            TimeoutError: The server did not answer in time: it may have given the lead to another one soon.
        """
        if connection is None:
            await asyncio.wait({task})
            return
        over = asyncio.Event()
        connection.add_termination_listener(lambda _connection: over.set())
        task.add_done_callback(lambda _task: over.set())
        while not (connection.is_closed() or over.is_set()):
            try:
                async with asyncio.timeout(self._check_s):
                    await over.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=RENEWAL_DEADLINE_S)


def lock_key(name: str) -> int:
    """Return the number of the advisory lock for the work called `name`: 64 bits with a sign, as PostgreSQL wants it."""
    digest = hashlib.sha256(f"tollkeeper leads {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
