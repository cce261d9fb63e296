"""The engine, its sessions, and the one way to write configuration.

Reads see one state of the database from their first query to their last. Writers of SQLite take the write lock when they
begin (`BEGIN IMMEDIATE`), because a reader that turns into a writer half-way may fail for good; within a process they
queue for it, so that none starves. On PostgreSQL writers run side by side and meet at the revision counter, which is
the last lock that a transaction takes.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import OverloadedError, StaleError
from controlplane.store.transactions import Transaction

# 5 s: longer than any write of ours, shorter than the deadline of an admin call.
SQLITE_BUSY_TIMEOUT_MS: Final = 5_000
# 10 s: the longest queue of writers that is worth waiting for; afterwards the caller is told to try again.
WRITER_WAIT_S: Final = 10.0

# PostgreSQL: serialization failure, deadlock.
_RACES: Final = frozenset({"40001", "40P01"})
_BEGIN_OPTION: Final = "tollkeeper_begin"

_log = logging.getLogger(__name__)


def open_engine(url: str | URL) -> AsyncEngine:
    """Return an engine for SQLite (`sqlite+aiosqlite:`) or PostgreSQL (`postgresql+asyncpg:`).

    Nothing is connected yet.

    Raises:
        ValueError: The URL names another database or driver.
    """
    parsed = make_url(url)
    if parsed.drivername == "sqlite+aiosqlite":
        engine = create_async_engine(
            parsed,
            # Values may be secret, and errors are logged.
            hide_parameters=True,
            json_serializer=_json_text,
            json_deserializer=msgspec.json.decode,
            # Without this the driver begins transactions when it likes; we begin them ourselves.
            connect_args={"isolation_level": None, "timeout": SQLITE_BUSY_TIMEOUT_MS / 1000},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql+asyncpg":
        return create_async_engine(
            parsed,
            hide_parameters=True,
            json_serializer=_json_text,
            json_deserializer=msgspec.json.decode,
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=10,
            pool_timeout=WRITER_WAIT_S,
            connect_args={"timeout": 10, "command_timeout": 30},
        )
    raise ValueError(
        f"unknown database {parsed.drivername}: use sqlite+aiosqlite or postgresql+asyncpg"
    )


def _json_text(value: Any) -> str:  # Any: JSON
    """Return JSON as text: four columns of each row of the ledger are, which the standard library is slow at."""
    return msgspec.json.encode(value).decode()


def _prepare_sqlite(connection: Any, _record: Any) -> None:  # Any: the driver's own types
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN_OPTION, "BEGIN"))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what the database refuses into refusals that a caller understands; its texts may hold values."""
    try:
        yield
    except (IntegrityError, StaleDataError) as error:
        raise StaleError("somebody else changed this at the same time; try again") from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _RACES:
            raise StaleError("somebody else changed this at the same time; try again") from error
        if error.connection_invalidated or isinstance(error, OperationalError):
            raise OverloadedError("the database does not answer; try again later") from error
        raise
    except TimeoutError as error:
        raise OverloadedError("others write for too long; try again later") from error


class ChangeSignal:
    """Tells listeners in this process that a revision was committed.

    Callbacks run in the event loop, right after the commit, and must not block or raise; changes of other processes
    are not heard here.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[int], None]] = []

    def listen(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(revision)` after every commit, until the returned function is called."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def notify(self, revision: int) -> None:
        """Tell everybody; one listener's fault is logged and does not reach the others or the writer."""
        for callback in tuple(self._listeners):
            try:
                callback(revision)
            except Exception:  # the change is committed: no listener may turn it into a failure
                _log.exception("a listener failed on revision %d", revision)


class Store:
    """One database: sessions that read, transactions that change the configuration, writes to the ledger."""

    def __init__(self, url: str | URL, *, clock: Callable[[], datetime] | None = None) -> None:
        """Prepare a store on `url`; `clock` returns aware instants, by default the system's."""
        self.engine = open_engine(url)
        self.changed = ChangeSignal()
        self.clock = clock or (lambda: datetime.now(UTC))
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        self._writer = asyncio.Lock()
        if self._is_sqlite:
            self._writing = self.engine.execution_options(**{_BEGIN_OPTION: "BEGIN IMMEDIATE"})
            self._reading = self.engine
        else:
            self._writing = self.engine
            self._reading = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @property
    def is_shared(self) -> bool:
        """Say whether other control planes may work on this database: PostgreSQL; SQLite is one program's own."""
        return not self._is_sqlite

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session whose queries all see one committed state. What is written in it is rolled back."""
        async with AsyncSession(self._reading, expire_on_commit=False) as session:
            yield session

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[AsyncSession]:
        """Open a session that writes what is not configuration; it takes no revision.

        Commits when the block ends, rolls back when it raises.

        Raises:
            TimeoutError: Other writers held SQLite for more than `WRITER_WAIT_S`.
        """
        async with self._writing_session() as session:
            yield session
            await session.commit()

    @contextlib.asynccontextmanager
    async def transaction(self, actor: str, rpc_name: str) -> AsyncIterator[Transaction]:
        """Open the one kind of transaction that changes configuration.

        When the block ends and something changed, the revision rises by one and is stamped on every changed row and
        on a tombstone for every deleted one, the audit row is written, and all of it is committed at once; then
        `changed` is notified. Without a change no revision is taken. When the block raises nothing is kept.

        Args:
            actor: Who changes, as the audit shows it.
            rpc_name: By which method.

        Raises:
            StaleError: Somebody else changed the same thing at the same time.
            OverloadedError: Others write for too long, or the database does not answer.
        """
        with _translated():
            async with self._writing_session() as session:
                tx = Transaction(session, actor=actor, rpc_name=rpc_name, now=self.clock())
                yield tx
                await tx.commit()
        if tx.committed_revision is not None:
            self.changed.notify(tx.committed_revision)
            for effect in tx.effects:
                await effect()

    @contextlib.asynccontextmanager
    async def _writing_session(self) -> AsyncIterator[AsyncSession]:
        async with (
            self._write_turn(),
            AsyncSession(self._writing, expire_on_commit=False) as session,
        ):
            yield session

    @contextlib.asynccontextmanager
    async def _write_turn(self) -> AsyncIterator[None]:
        if not self._is_sqlite:
            yield
            return
        async with asyncio.timeout(WRITER_WAIT_S):
            await self._writer.acquire()
        try:
            yield
        finally:
            self._writer.release()
