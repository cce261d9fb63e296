"""Where the primary is that some sentinels watch: asked before every connection.

A sentinel that is cut off from the others may name a primary that is none any more. A demoted one is
found out at the connect (`connection`) or by its first write, and one that nobody told goes on: what it
admits in that time is lost with its data. `min-replicas-to-write` on the servers bounds that time.

A new primary has another run id, so its counters are cold until they are rebuilt, whatever it had
received of them.
"""

from typing import Any  # Any: what a sentinel answers depends

from redis.exceptions import RedisError, ResponseError

from dataplane.limits.redis_urls import Address, RedisUrl
from dataplane.limits.witnesses import Lookup, Question, Witnesses


class SentinelTarget:
    """The primary of one name; belongs to one event loop."""

    def __init__(self, url: RedisUrl) -> None:
        """Prepare; nobody is asked yet.

        Raises:
            ValueError: The URL names no sentinels.
        """
        if not url.primary_name:
            raise ValueError("the URL names no sentinels")
        self.url = url.server(url.addresses[0])
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.primary_name)
        self._question = Question(command, _primary)
        self._sentinels = Witnesses([url.sentinel(each) for each in url.addresses])
        self._lookup = Lookup(self._ask)

    async def address(self) -> Address:
        """Return host and port of the primary, as known half a second ago, or last.

        Raises:
            RedisError, OSError: No sentinel has ever answered, or none knows it.
        """
        return await self._lookup.answer()

    async def _ask(self) -> Address:
        return await self._sentinels.ask(self._question)


def _primary(answer: Any, _asked_host: str) -> Address:
    if isinstance(answer, ResponseError):
        raise answer
    if answer is None:
        raise RedisError("the sentinel knows no primary of this name")
    host, port = answer
    return host.decode(), int(port)
