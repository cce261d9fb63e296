"""The data planes that use these counters, and how far each has reported what it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from dataplane.maintenance.counter_table import text_of
from dataplane.maintenance.ports import Desk

# What a node may still have in its spool counts in a month that is not over: longer than any month.
FORGOTTEN_MS: Final = 40 * 86_400_000


class Presence(msgspec.Struct, frozen=True):
    """When a node was there last, and the start of its oldest request that the ledger may lack.

    Milliseconds by the clock of Redis; None: the ledger has everything.
    """

    seen_ms: int
    oldest_unreported_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Roll:
    """All nodes at one instant, `now_ms` by the clock of Redis."""

    now_ms: int
    nodes: Mapping[str, Presence]

    def seen_within(self, milliseconds: int) -> frozenset[str]:
        """Return the nodes that were there so short a time ago."""
        earliest = self.now_ms - milliseconds
        return frozenset(name for name, each in self.nodes.items() if each.seen_ms >= earliest)

    def has_all_before(self, instant_ms: int, milliseconds: int) -> bool:
        """Return whether every node is there, and the ledger has what any of them began by then."""
        earliest = max(instant_ms, self.now_ms - milliseconds)
        return all(
            each.seen_ms >= earliest
            and (each.oldest_unreported_ms is None or each.oldest_unreported_ms > instant_ms)
            for each in self.nodes.values()
        )


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Presence)


class NodeRegistry:
    """Keeps this node in the hash of all nodes, and reads who else is there.

    Attributes:
        last: What was read last; it outlives the data of Redis.
    """

    def __init__(self, desk: Desk, node_id: str) -> None:
        """Prepare; nothing is written yet."""
        self._desk = desk
        self._node_id = node_id
        self.last = Roll(0, {})

    async def announce(self, unreported_for_ms: int | None) -> None:
        """Say that this node is there, and for how long its oldest request waits to be reported.

        An age and no instant: the clocks of nodes differ.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        now_ms = await self.now_ms()
        oldest_ms = None if unreported_for_ms is None else now_ms - max(0, unreported_for_ms)
        presence = _encode(Presence(now_ms, oldest_ms))
        await self._desk.client.hset(self._desk.keyspace.nodes, self._node_id, presence)

    async def read(self) -> Roll:
        """Return who is there; a node that was not for longer than any month is forgotten.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        key = self._desk.keyspace.nodes
        pipeline = self._desk.client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hgetall(key)
        now, found = await pipeline.execute()
        now_ms = _milliseconds(*now)
        nodes = {text_of(name): _presence(value, now_ms) for name, value in found.items()}
        forgotten = [name for name, each in nodes.items() if each.seen_ms < now_ms - FORGOTTEN_MS]
        if forgotten:
            await self._desk.client.hdel(key, *forgotten)
        gone = frozenset(forgotten)
        nodes = {name: each for name, each in nodes.items() if name not in gone}
        self.last = Roll(now_ms, nodes)
        return self.last

    async def leave(self) -> None:
        """Take this node off: it is going, and the ledger has all that it did.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        await self._desk.client.hdel(self._desk.keyspace.nodes, self._node_id)

    async def now_ms(self) -> int:
        """Return the time of Redis, in Unix milliseconds.

        Raises:
            RedisError, OSError: Redis did not answer.
        """
        return _milliseconds(*await self._desk.client.time())


def _milliseconds(seconds: int, microseconds: int) -> int:
    return int(seconds) * 1000 + int(microseconds) // 1000


def _presence(value: bytes | str, now_ms: int) -> Presence:
    """Return what a node said; one whose words are not ours is there, and has reported nothing."""
    try:
        return _decoder.decode(value)
    except msgspec.MsgspecError:
        return Presence(now_ms, 0)
