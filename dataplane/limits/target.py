"""Which server holds the counters: asked anew before every connection, and while one is used.

One server at a fixed address is a URL and no more. Where the primary can move, the target names
its present address; scheme, credentials, database and TLS stay those of the URL. A connection to
where the primary was before is closed: a former primary may not know for seconds that it is one.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final, Protocol  # Any: the library's own connection arguments

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, TryAgainError


class Target(Protocol):
    """Where the counters are."""

    @property
    def url(self) -> str:
        """How to talk to the server: redis://, rediss:// or unix://; may hold a password."""
        ...

    async def address(self) -> tuple[str, int] | None:
        """Return host and port of the primary now; None: those of the URL.

        Asked within the deadline of each connect, which cancels it, and about once a second.

        Raises:
            RedisError, OSError: Nobody who could be asked knows.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedTarget:
    """A server that stays where it is."""

    url: str = field(repr=False)

    async def address(self) -> tuple[str, int] | None:
        """Return None: the URL says where."""
        return None


def target_of(target: Target | str) -> Target:
    """Return a target; text is the URL of a server that stays where it is."""
    return FixedTarget(target) if isinstance(target, str) else target


def pool_of(target: Target, timeout_seconds: float | None) -> ConnectionPool:
    """Return a pool of connections to wherever `target` is; nothing is opened yet.

    No library retries: they can wait for more than a minute on a server that was stopped. A
    connection whose server turns out to be a replica, or a node that does not serve the counters
    (any more), is closed, so that the next one is made to wherever the primary is by then.

    Args:
        target: Asked before each connect.
        timeout_seconds: Of each connect and each answer; None leaves deadlines to the caller.

    Raises:
        ValueError: The URL cannot be understood.
    """
    pool = ConnectionPool.from_url(
        target.url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    kind = _KINDS.get(pool.connection_class)
    if kind is not None:
        pool.connection_class = kind
        pool.connection_kwargs["target"] = target
    return pool


# A replica; a node of a Cluster that does not serve the slot (MOVED is an ASK for good), or no slot.
_NOT_HERE: Final = (ReadOnlyError, AskError, ClusterDownError, TryAgainError)


# How often a connection that is used makes sure that the primary is still where it was, and how long
# it waits for that: an answer that comes later is there the next time.
_CHECK_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 0.02


class _Following(Connection):
    """A connection that asks its target for the address whenever it connects, and once a second."""

    def __init__(self, *, target: Target, **arguments: Any) -> None:
        self._target = target
        self._check_at = 0.0
        super().__init__(**arguments)

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        now = asyncio.get_running_loop().time()
        if self.is_connected and now >= self._check_at:
            self._check_at = now + _CHECK_SECONDS
            if await self._has_moved():
                await self.disconnect(nowait=True)
        if not self.is_connected:
            async with asyncio.timeout(self.socket_connect_timeout):
                address = await self._target.address()
            if address is not None:
                self.host, self.port = address
        await super().connect_check_health(check_health, retry_socket_connect)

    async def _has_moved(self) -> bool:
        """Tell whether the primary is elsewhere; without an answer it is taken to be here."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                address = await self._target.address()
        except (RedisError, OSError):
            return False
        return address is not None and address != (self.host, self.port)

    async def read_response(self, *positional: Any, **named: Any) -> Any:
        try:
            return await super().read_response(*positional, **named)
        except _NOT_HERE:
            await self.disconnect(nowait=True)
            raise


class _FollowingOverTls(_Following, SSLConnection):
    """The same over TLS."""


# A socket file does not move.
_KINDS: Final[dict[type[AbstractConnection], type[_Following]]] = {
    Connection: _Following,
    SSLConnection: _FollowingOverTls,
}
