"""Where the primary is that some sentinels watch: asked before every connection.

A sentinel that is cut off from the others may name a primary that is none any more. A demoted one is
found out at the connect (`connection`) or by its first write, and one that nobody told goes on: what it
admits in that time is lost with its data. `min-replicas-to-write` on the servers bounds that time.

A new primary has another run id, so its counters are cold until they are rebuilt, whatever it had
received of them.
"""

from redis.asyncio import Redis
from redis.exceptions import RedisError

from dataplane.limits.redis_urls import Address, RedisUrl
from dataplane.limits.witnesses import Lookup, Witnesses


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
        self._name = url.primary_name
        self._sentinels = Witnesses([url.sentinel(each) for each in url.addresses])
        self._lookup = Lookup(self._ask)

    async def address(self) -> Address:
        """Return host and port of the primary, as known half a second ago or later.

        Raises:
            RedisError, OSError: No sentinel answered within 50 ms each, or none knows it.
        """
        return await self._lookup.answer()

    async def _ask(self) -> Address:
        return await self._sentinels.ask(self._primary)

    async def _primary(self, sentinel: Redis) -> Address:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        found = await sentinel.execute_command(*command)  # type: ignore[no-untyped-call] # the library has no annotation here
        if found is None:
            raise RedisError("the sentinel knows no primary of this name")
        host, port = found
        return host.decode(), int(port)
