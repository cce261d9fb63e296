"""The counters as whoever maintains them sees them: a connection beside that of the requests.

Maintenance must not wait behind requests, must work while the counters are cold, and may take
longer over each step.
"""

from typing import Any, Final  # Any: the library's own annotations

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from dataplane.limits.connection import is_epoch_of, new_epoch
from dataplane.limits.counters import DEFAULT_HASH_TAG, Keyspace
from dataplane.limits.operations import Answer, Operation, Outcome, Reply, decode, encode
from dataplane.limits.queues import MAX_BATCH
from dataplane.limits.script import Script, limiter_script
from dataplane.limits.target import Target, pool_of, target_of
from dataplane.limits.upkeep import OpenEpoch

DESK_SECONDS: Final = 1.0


class CounterDesk:
    """Runs operations on the counters, cold or not; close it with `aclose`.

    Several tasks may use it at once. A connection whose command failed or was cancelled is closed;
    what the command was to do may have happened.

    Attributes:
        client: For what is no operation of the script (SCAN, HSET, …): raw bytes, no retries, a
            second for each connect and each answer.
        keyspace: Names the keys.
    """

    def __init__(
        self,
        target: Target | str,
        keyspace: Keyspace | None = None,
        *,
        script: Script | None = None,
        timeout_seconds: float = DESK_SECONDS,
    ) -> None:
        """Prepare; connections are opened when they are first needed.

        Args:
            target: Where the counters are, or the URL of a server that stays where it is.
            keyspace: Of the counters; production's unless given.
            script: Another text than production's, for tests.
            timeout_seconds: Of each connect and each answer.

        Raises:
            ValueError: The URL cannot be understood.
        """
        self.keyspace = keyspace or Keyspace()
        self._script = script or limiter_script()
        self.client: Redis = Redis.from_pool(pool_of(target_of(target), timeout_seconds))

    async def run(self, *operations: Operation) -> list[Answer]:
        """Run operations in their order and return an answer for each; 64 at a time are one instant.

        Raises:
            RedisError, OSError: No answer in time, or the server refused. Some of the operations
                may have taken effect.
            msgspec.MsgspecError: The answer was not one of the script.
        """
        answers: list[Answer] = []
        for start in range(0, len(operations), MAX_BATCH):
            answers += (await self.exchange(*operations[start : start + MAX_BATCH])).answers
        return answers

    async def exchange(self, *operations: Operation) -> Reply:
        """Run at most 64 operations at one instant; with none, ask for the clocks. As `run`."""
        keys, arguments = encode(operations, self.keyspace)
        # No epoch: what maintains the counters asks for none.
        call: tuple[Any, ...] = (len(keys), *keys, b"", *arguments)
        try:
            return decode(await self.client.evalsha(self._script.digest, *call))
        except NoScriptError:
            return decode(await self.client.eval(self._script.text, *call))

    async def run_id(self) -> str:
        """Return what names this run of the server: another after each restart.

        Raises:
            RedisError, OSError: No answer in time, or the server does not tell.
        """
        about: dict[str, Any] = await self.client.info("server")
        if not about.get("run_id"):
            raise RedisError("the server does not tell its run id")
        return str(about["run_id"])

    async def epoch(self) -> str | None:
        """Return the counter epoch, or None when there is none.

        Raises:
            RedisError, OSError: No answer in time.
        """
        found = await self.client.get(self.keyspace.epoch)
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    async def is_cold(self) -> bool:
        """Tell whether the counters wait for being rebuilt.

        Raises:
            RedisError, OSError: No answer in time.
        """
        epoch = await self.epoch()
        return epoch is None or not is_epoch_of(epoch.encode(), await self.run_id())

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()


async def open_counters(redis_url: str | Target, hash_tag: str = DEFAULT_HASH_TAG) -> str | None:
    """Open a fresh epoch on counters that are cold, as if they had been rebuilt from nothing.

    For tests and benchmarks: nothing is rebuilt, and two that run at once may both open one.

    Returns:
        The epoch, or None when the counters were not cold.

    Raises:
        RedisError, OSError: Redis cannot be reached.
    """
    desk = CounterDesk(redis_url, Keyspace(hash_tag))
    try:
        if not await desk.is_cold():
            return None
        epoch = new_epoch(await desk.run_id())
        [answer] = await desk.run(OpenEpoch(epoch))
        if answer[0] != Outcome.OK:
            raise RedisError(f"the epoch was not opened: {answer!r}")
        return epoch
    finally:
        await desk.aclose()
