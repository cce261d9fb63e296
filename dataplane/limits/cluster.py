"""Which node of a Redis Cluster serves a hash tag: asked before every connection.

A node that no longer serves it says so (MOVED, ASK, CLUSTERDOWN): the connection is closed and the
next one goes to wherever the slot is by then. There the counters are cold, since the node has another
run id, until they are rebuilt. While a slot is being moved its counters cannot be asked.

A server that is no node of a Cluster serves every tag.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Final  # Any: an answer of the client library

from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from dataplane.limits.redis_urls import Address, RedisUrl
from dataplane.limits.witnesses import Lookup, Question, Witnesses

# What a server says that was started without.
_NO_CLUSTER: Final = "cluster support disabled"
# A node that was never told under which name others reach it.
_NAMELESS: Final = (None, b"", b"?")


@dataclass(frozen=True, slots=True)
class _SlotMap:
    """Ranges of slots in their order, and the address of the primary of each."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    addresses: tuple[Address, ...]

    def address_of(self, slot: int) -> Address:
        """Return who serves a slot.

        Raises:
            RedisError: Nobody does.
        """
        place = bisect_right(self.starts, slot) - 1
        if place < 0 or slot > self.ends[place]:
            raise RedisError("no node serves the slot of these counters")
        return self.addresses[place]


class ClusterNodes:
    """The nodes of one Cluster; belongs to one event loop."""

    def __init__(self, url: RedisUrl) -> None:
        """Prepare; nobody is asked yet. Nodes that the URL does not name are found by the others."""
        self.url = url.server(url.addresses[0])
        self._url = url
        self._witnesses = Witnesses([url.server(each) for each in url.addresses])
        self._lookup = Lookup(self._ask)

    def target(self, hash_tag: str) -> "SlotTarget":
        """Return where the counters under a hash tag are."""
        return SlotTarget(self, slot_of(hash_tag))

    async def address_of(self, slot: int) -> Address | None:
        """Return the primary that serves `slot`, as known half a second ago, or last.

        Returns:
            None when the server is no node of a Cluster.

        Raises:
            RedisError, OSError: No node has ever answered, or nobody serves the slot.
        """
        slots = await self._lookup.answer()
        return None if slots is None else slots.address_of(slot)

    async def _ask(self) -> _SlotMap | None:
        slots = await self._witnesses.ask(_WHO_SERVES_WHAT)
        if slots is not None:
            known = (*slots.addresses, *self._url.addresses)
            self._witnesses.replace([self._url.server(each) for each in known])
        return slots


@dataclass(frozen=True, slots=True)
class SlotTarget:
    """The primary that serves one slot."""

    nodes: ClusterNodes = field(repr=False)
    slot: int

    @property
    def url(self) -> str:
        """How to talk to it, and to every other node."""
        return self.nodes.url

    async def address(self) -> Address | None:
        """Return its host and port.

        Raises:
            RedisError, OSError: No node answered, or nobody serves the slot.
        """
        return await self.nodes.address_of(self.slot)


def slot_of(hash_tag: str) -> int:
    """Return the slot of all keys under a hash tag."""
    return key_slot(f"{{{hash_tag}}}".encode())


def _slots(answer: Any, asked_host: str) -> _SlotMap | None:
    """Return who serves what, or None from a server that is no node of a Cluster."""
    if isinstance(answer, ResponseError):
        if _NO_CLUSTER in str(answer):
            return None
        raise answer
    if not answer:
        raise RedisError("the node does not know who serves what")
    ranges = sorted(
        (start, end, _address(primary, asked_host)) for start, end, primary, *_ in answer
    )
    starts, ends, addresses = zip(*ranges, strict=True)
    return _SlotMap(starts, ends, addresses)


def _address(primary: list[Any], asked_host: str) -> Address:
    host, port = primary[0], int(primary[1])
    return (asked_host if host in _NAMELESS else host.decode()), port


# CLUSTER SHARDS would say the same, but not before Redis 7.
_WHO_SERVES_WHAT: Final = Question(("CLUSTER", "SLOTS"), _slots)
