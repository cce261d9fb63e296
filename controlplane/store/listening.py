"""What PostgreSQL announces: a wake-up for changes of other programs, and what control planes tell each other.

Nothing that is announced is needed for correctness, and nothing that was missed is repeated: whoever listens reads the
database as well, now and then, and after each time that the connection came back.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from controlplane.store.connections import (
    CONNECTION_ERRORS,
    STATEMENT_DEADLINE_S,
    own_connection,
)
from controlplane.store.database import Store

MAX_PAYLOAD_BYTES: Final = 7_999
"""PostgreSQL refuses longer ones."""

# A connection whose other end is gone without a word is noticed after this time and a deadline.
CHECK_S: Final = 5.0

_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 5.0

_log: Final = structlog.get_logger(__name__)


class Listening:
    """Channels of one database, heard on one connection of its own, which is made again whenever it is lost.

    On SQLite there is nothing to hear: `run` returns at once and `notify` tells nobody.
    """

    def __init__(
        self,
        store: Store,
        *,
        check_s: float = CHECK_S,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store = store
        self._check_s = check_s
        self._jitter = jitter
        self._channels: dict[str, Callable[[str], None]] = {}
        self._wakes: list[Callable[[], None]] = []
        self._connection: asyncpg.Connection | None = None
        # A connection does one thing at a time.
        self._speaking = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Say whether announcements are heard now."""
        return self._connection is not None

    def listen(self, channel: str, callback: Callable[[str], None]) -> None:
        """Call `callback(payload)` for each announcement on `channel`; to be said before `run`.

        Callbacks run in the event loop and must not block. A program hears its own announcements too.
        """
        self._channels[channel] = callback

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call `callback()` each time that listening begins (again): something may have been missed before."""
        self._wakes.append(callback)

    async def notify(self, channel: str, payload: str) -> bool:
        """Announce `payload`; return whether the server took it. Who listens now hears it, in the order of the calls.

        Raises:
            ValueError: It is longer than `MAX_PAYLOAD_BYTES`.
        """
        if len(payload.encode()) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"more than {MAX_PAYLOAD_BYTES} bytes cannot be announced")
        try:
            async with asyncio.timeout(STATEMENT_DEADLINE_S), self._speaking:
                if self._connection is None:
                    return False
                await self._connection.execute("SELECT pg_notify($1, $2)", channel, payload)
        except CONNECTION_ERRORS as error:
            _log.warning("announcement failed", channel=channel, error=type(error).__name__)
            return False
        return True

    async def run(self) -> None:
        """Listen until cancelled. An outage is logged once, and its end too."""
        if not self._store.is_shared:
            return
        failures = 0
        while True:
            try:
                async with own_connection(self._store) as connection:
                    await self._begin(connection)
                    failures = 0
                    await self._stay(connection)
            except CONNECTION_ERRORS as error:
                if not failures:
                    _log.warning("listening interrupted", error=type(error).__name__)
            finally:
                self._connection = None
            await asyncio.sleep(self._retry_s(failures))
            failures += 1

    def _retry_s(self, failures: int) -> float:
        longest_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10))
        # Control planes that lost one server together must not come back together.
        return self._jitter(longest_s / 2, longest_s)

    async def _begin(self, connection: asyncpg.Connection) -> None:
        async with asyncio.timeout(STATEMENT_DEADLINE_S):
            for channel in self._channels:
                await connection.add_listener(channel, self._hear)
        self._connection = connection
        _log.info("listening to the database")
        for wake in self._wakes:
            self._call(wake)

    async def _stay(self, connection: asyncpg.Connection) -> None:
        """Return when the connection is lost.

        Raises:
            TimeoutError: It does not answer any more.
        """
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        while not (lost.is_set() or connection.is_closed()):
            try:
                async with asyncio.timeout(self._check_s):
                    await lost.wait()
            except TimeoutError:
                async with asyncio.timeout(STATEMENT_DEADLINE_S), self._speaking:
                    await connection.execute("SELECT 1")
        _log.warning("listening interrupted", error="connection lost")

    def _hear(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self._call(lambda: self._channels[channel](str(payload)))

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # task boundary: one listener's fault must not reach the connection
            _log.exception("a listener failed")
