"""Guards in Redis: abuse is slowed down over all data planes together.

    tk:1:{g}:g:<guard>:<subject>    theoretical arrival time in limiter milliseconds; ends with it

A call of their own, beside those of the limiter: guards stand before requests that nobody pays for
yet. While Redis cannot be asked nobody passes (`LimitsUnavailable`).
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

import msgspec

from dataplane.domain.guards import Check, Verdict
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.connection import TIMEOUT_SECONDS, RedisConnection, RedisFailure
from dataplane.limits.counters import DEFAULT_HASH_TAG, Keyspace
from dataplane.limits.patience import Deadline
from dataplane.limits.script import Script
from dataplane.limits.target import Target

# A call takes about 0.2 ms and there is one connection: the last of these waits some 50 ms.
MAX_WAITING: Final = 256
# How often a call is made: a connection that was cut while it was idle shows at its next use.
_ATTEMPTS: Final = 2
_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, int])


class Guards:
    """The guards of one data-plane process; `aclose` closes their connection."""

    def __init__(
        self,
        redis_url: str | Target,
        is_available: Callable[[], bool],
        *,
        hash_tag: str = DEFAULT_HASH_TAG,
        script: Script | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Prepare; the connection is opened when it is first needed.

        Args:
            redis_url: Where the counters under the tag are; may hold a password.
            is_available: Whether the limiter's breaker lets calls through; asked each time.
            hash_tag: Sets key spaces on one server apart; the limiter's.
            script: Another text than production's, for tests.
            timeout_seconds: Of each connect and each attempt; a check ends within twice that,
                once it is its turn.

        Raises:
            ValueError: The URL cannot be understood.
        """
        self._keyspace = Keyspace(hash_tag)
        self._connection = RedisConnection(
            redis_url, self._keyspace, script or guard_script(), timeout_seconds
        )
        self._is_available = is_available
        self._turn = asyncio.Lock()
        self._waiting = 0
        # Counted, so that whoever waited during a failure need not find out for itself.
        self._failures = 0

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        """Count one call with all of `checks`, or with none when one does not let it through.

        After a failure it is asked once more, so a call may be counted twice: never too few.
        Cancelling it may leave the call counted.

        Raises:
            LimitsUnavailable: Redis did not answer in time, is known to be away, or too many wait.
            ValueError: A check stands there twice.
        """
        keys = [self._keyspace.clock, *(self._key(check) for check in checks)]
        if len(set(keys)) != len(keys):
            raise ValueError("a check stands there twice")
        if not self._is_available() or self._waiting >= MAX_WAITING:
            raise LimitsUnavailable("the guards cannot be asked")
        failures = self._failures
        self._waiting += 1
        try:
            async with self._turn:
                if self._failures != failures:
                    raise LimitsUnavailable("the guards did not answer in time")
                binding, wait_ms = await self._ask(keys, checks)
        finally:
            self._waiting -= 1
        return Verdict(wait_ms, checks[binding - 1]) if binding else Verdict()

    async def aclose(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._connection.close()

    def _key(self, check: Check) -> str:
        return f"{self._keyspace.prefix}g:{check.guard.name}:{check.subject}"

    async def _ask(self, keys: Sequence[str], checks: Sequence[Check]) -> tuple[int, int]:
        """Return the script's answer: the number of the binding check, and its wait."""
        figures = ((check.guard.burst, check.guard.interval_ms) for check in checks)
        arguments = [b"%d" % figure for pair in figures for figure in pair]
        try:
            async with Deadline(_ATTEMPTS * self._connection.timeout_seconds):
                return _DECODER.decode(await self._call(keys, arguments))
        except (*RedisFailure, msgspec.MsgspecError) as error:
            self._failures += 1
            raise LimitsUnavailable("the guards did not answer in time") from error

    async def _call(self, keys: Sequence[str], arguments: Sequence[bytes]) -> bytes:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._call_once(keys, arguments)
            except RedisFailure:
                continue
        return await self._call_once(keys, arguments)

    async def _call_once(self, keys: Sequence[str], arguments: Sequence[bytes]) -> bytes:
        await self._connection.open()
        return await self._connection.run(keys, arguments)


@cache
def guard_script() -> Script:
    """Return the script that production runs."""
    return assemble_guard(_read("clock"))


def assemble_guard(clock: str) -> Script:
    """Return the script with `clock` as its source of time.

    Args:
        clock: Lua text that defines `server_clock_ms()`; tests bring their own.
    """
    return Script.of(f"{clock}\n{_read('guard')}")


def _read(name: str) -> str:
    return (files("dataplane.limits") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
