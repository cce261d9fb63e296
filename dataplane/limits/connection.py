"""One connection to Redis, its deadlines, and the counter epoch of what it found there."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from dataplane.limits.counters import Keyspace
from dataplane.limits.patience import Deadline
from dataplane.limits.script import Script

# Limits page, section 11. The library's own defaults can wait for more than a minute
# on a server that was stopped.
TIMEOUT_SECONDS: Final = 0.05

# What a call can raise when Redis is away, slow, or refuses; the connection is closed then.
RedisFailure = (RedisError, OSError, EOFError)


class RedisConnection:
    """Runs the limiter's script, one call at a time.

    Not for concurrent use: the batcher owns it. Whatever goes wrong within a call
    closes the connection, so that no later call reads an answer that is not its own.
    """

    def __init__(
        self,
        redis_url: str,
        keyspace: Keyspace,
        script: Script,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Prepare a connection; nothing is opened yet.

        Raises:
            ValueError: `redis_url` is not a redis://, rediss:// or unix:// URL.
        """
        self._keyspace = keyspace
        self._script = script
        self.timeout_seconds = timeout_seconds
        # The pool only reads the URL and builds the right kind of connection.
        pool = ConnectionPool.from_url(
            redis_url,
            # Deadlines are ours: the library's would count a turn of our own loop that was late.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self.link: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call] # the library has no annotation here
        # How far the last failure overran its deadline: our own loop was that late.
        self.late_seconds = 0.0
        self.counter_epoch = b""

    async def open(self) -> None:
        """Connect if there is no connection, and learn the counter epoch.

        Raises:
            RedisError, OSError: Redis cannot be reached in time.
        """
        if self.link.is_connected and self.counter_epoch:
            return
        async with _Attempt(self), Deadline(self.timeout_seconds):
            await self.link.connect()  # type: ignore[no-untyped-call] # the library has no annotation here
        key = self._keyspace.epoch
        async with _Attempt(self), Deadline(self.timeout_seconds):
            await self.link.send_command("SET", key, secrets.token_hex(16), "NX")
            await self.link.read_response()
            await self.link.send_command("GET", key)
            self.counter_epoch = await self.link.read_response() or b""

    async def run(self, keys: Sequence[str], arguments: Sequence[bytes]) -> bytes:
        """Call the script with the counter epoch and `arguments`; return its packed answer.

        A server that does not know the script gets its text and remembers it.

        Raises:
            RedisError, OSError: No answer in time, or the server refused the call.
        """
        call: tuple[str | int | bytes, ...] = (len(keys), *keys, self.counter_epoch, *arguments)
        async with _Attempt(self), Deadline(self.timeout_seconds):
            try:
                return await self._ask("EVALSHA", self._script.digest, *call)
            except NoScriptError:
                return await self._ask("EVAL", self._script.text, *call)

    async def close(self) -> None:
        """Close the connection; it may be opened again."""
        await self.link.disconnect()

    async def _ask(self, *command: str | int | bytes) -> bytes:
        # Packed in C: the library's own packing costs 0.5 µs an argument, and a batch has a
        # thousand of them.
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub names a tuple of one
        await self.link.send_packed_command([packed], check_health=False)
        answer = await self.link.read_response()
        if not isinstance(answer, bytes):
            raise RedisError("the script answered something else than bytes")
        return answer


class _Attempt:
    """Closes the connection when the block fails or is cancelled, and notes how late that was."""

    __slots__ = ("_connection", "_loop", "_started")

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> None:
        self._started = self._loop.time()

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            elapsed = self._loop.time() - self._started
            self._connection.late_seconds = max(0.0, elapsed - self._connection.timeout_seconds)
            await self._connection.link.disconnect(nowait=True)
