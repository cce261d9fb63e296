"""One connection to Redis, its deadlines, and the counter epoch of what it found there.

Counters belong to an epoch, `<random hex>-<run id of the server>`, that whoever rebuilt them wrote.
Without one, or with that of another run, they are cold: emptied, restored, or those of a server that
restarted or took over and may have lost the last writes. This module never writes an epoch.
"""

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from dataplane.limits.counters import Keyspace
from dataplane.limits.patience import Deadline
from dataplane.limits.script import Script
from dataplane.limits.target import Target, pool_of, target_of

# Limits page, section 11.
TIMEOUT_SECONDS: Final = 0.05

# What a call can raise when Redis is away, slow, or refuses; the connection is closed then.
RedisFailure = (RedisError, OSError, EOFError)

_RUN_ID: Final = re.compile(rb"^run_id:(\S+)", re.MULTILINE)
_REPLICA: Final = re.compile(rb"^role:slave", re.MULTILINE)


def new_epoch(run_id: str) -> str:
    """Return an epoch for counters that were just rebuilt on the server of `run_id`."""
    return f"{secrets.token_hex(16)}-{run_id}"


def is_epoch_of(epoch: bytes | None, run_id: str) -> bool:
    """Tell whether counters of `epoch` were rebuilt in the run of the server that has them."""
    return epoch is not None and epoch.endswith(f"-{run_id}".encode())


class RedisConnection:
    """Runs the limiter's script, one call at a time.

    Not for concurrent use: the batcher owns it. Whatever goes wrong within a call
    closes the connection, so that no later call reads an answer that is not its own, and the next
    one goes to wherever the primary is by then.

    Attributes:
        counter_epoch: That of the counters; empty while they are cold.
        is_cold: Whether they were cold when last looked at; false before anybody looked.
        late_seconds: How far the last failure overran its deadline: our own loop was that late.
    """

    def __init__(
        self,
        target: Target | str,
        keyspace: Keyspace,
        script: Script,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Prepare a connection; nothing is opened yet.

        Raises:
            ValueError: The target's URL is not a redis://, rediss:// or unix:// one.
        """
        self._keyspace = keyspace
        self._script = script
        self.timeout_seconds = timeout_seconds
        # The pool only builds the right kind of connection. Deadlines are ours: the library's would
        # count a turn of our own loop that was late.
        pool = pool_of(target_of(target), timeout_seconds=None)
        self.link: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call] # the library has no annotation here
        self.late_seconds = 0.0
        self.counter_epoch = b""
        self.is_cold = False

    async def open(self) -> None:
        """Connect and look, if there is no connection.

        Raises:
            RedisError, OSError: Redis cannot be reached in time, or is a replica.
        """
        if not self.link.is_connected:
            await self.look()

    async def look(self) -> None:
        """See whether the counters are cold, and learn their epoch; connect before if need be.

        Raises:
            RedisError, OSError: Redis cannot be reached in time, or is a replica.
        """
        await self._look_and_read()

    async def look_and_run(self, keys: Sequence[str], arguments: Sequence[bytes]) -> bytes:
        """As `look` and then `run`, in one exchange of messages.

        The script is called even if the counters turn out to be cold: for a call without operations
        that depend on their epoch.

        Raises:
            RedisError, OSError: As `look` and `run`.
        """
        call: tuple[str | int | bytes, ...] = (len(keys), *keys, b"", *arguments)
        try:
            return _bytes(*await self._look_and_read(("EVALSHA", self._script.digest, *call)))
        except NoScriptError:
            # A script that is not known closed the connection.
            await self.look()
            return await self.run(keys, arguments)

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

    async def _look_and_read(self, *commands: tuple[str | int | bytes, ...]) -> list[Any]:
        """Look, and return the answers to commands that are sent with the questions."""
        async with _Attempt(self), Deadline(self.timeout_seconds):
            await self.link.connect()  # type: ignore[no-untyped-call] # the library has no annotation here
        async with _Attempt(self), Deadline(self.timeout_seconds):
            server, replication, epoch, *answers = await self._read(
                ("INFO", "server"),
                ("INFO", "replication"),
                ("GET", self._keyspace.epoch),
                *commands,
            )
            run_id = _RUN_ID.search(server)
            if run_id is None:
                raise RedisError("the server does not tell its run id")
            if _REPLICA.search(replication):
                # Its counters are of use to nobody; the next connect asks where the primary is.
                raise ReadOnlyError("the server is a replica")
        self.is_cold = not is_epoch_of(epoch, run_id[1].decode())
        self.counter_epoch = b"" if self.is_cold else epoch
        return answers

    async def _ask(self, *command: str | int | bytes) -> bytes:
        return _bytes(*await self._read(command))

    async def _read(self, *commands: tuple[str | int | bytes, ...]) -> list[Any]:
        """Return the answers to commands that are sent together; Any: what they are depends."""
        # Packed in C: the library's own packing costs 0.5 µs an argument, and a batch has a
        # thousand of them.
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type] # its stub names a tuple of one
        await self.link.send_packed_command(packed, check_health=False)
        return [await self.link.read_response() for _ in commands]


def _bytes(answer: Any) -> bytes:
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
