"""What a node hands over to a rebuild of lost counters: what it spent, and what it holds.

…:rebuild               id of the rebuild under way, by its holder
…:rebuild:<id>:<node>   list of parts, by each node
…:rebuild:<id>:frozen   hash of the nodes whose list is complete
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from dataplane.domain.sums import Contribution
from dataplane.limits.reservation import Held
from dataplane.maintenance.counter_table import parts_of, text_of
from dataplane.maintenance.ports import Desk

# Whoever rebuilds reads them within seconds, or another rebuild has begun.
KEPT_MS: Final = 60_000
_PART: Final = 500


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """What a request in flight holds; the fields are those of `Held`."""

    request_id: str
    counters: list[int | str]
    meta: bytes
    admitted_at_ms: int

    @classmethod
    def of(cls, held: Held) -> "Hold":
        """Return what travels of `held`."""
        return cls(held.request_id, held.counters, held.meta, held.admitted_at_ms)


class Handover(msgspec.Struct, frozen=True, array_like=True):
    """Of one node: what the ledger may not have yet, and what is in flight."""

    contributions: Sequence[Contribution] = ()
    holds: Sequence[Hold] = ()


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Handover)


class Handovers:
    """Leaves and collects handovers under one hash tag; every method raises RedisError or OSError."""

    def __init__(self, desk: Desk) -> None:
        """Use `desk`."""
        self._desk = desk
        self._keyspace = desk.keyspace

    async def announce(self, rebuild_id: str) -> None:
        """Ask every node for its handover."""
        await self._desk.client.set(self._keyspace.rebuild, rebuild_id, px=KEPT_MS)

    async def wanted(self) -> str | None:
        """Return the id of the rebuild under way."""
        found = await self._desk.client.get(self._keyspace.rebuild)
        return None if found is None else text_of(found)

    async def leave(
        self,
        rebuild_id: str,
        node_id: str,
        contributions: Sequence[Contribution],
        holds: Sequence[Hold],
    ) -> None:
        """Hand over all that a node has, and say that this is all."""
        key = self._keyspace.rebuild_list(rebuild_id, node_id)
        frozen = self._keyspace.rebuild_frozen(rebuild_id)
        parts = [Handover(contributions=part) for part in parts_of(contributions, _PART)]
        parts += [Handover(holds=part) for part in parts_of(holds, _PART)]
        # Anew after a failure: what was left then would count twice.
        await self._desk.client.delete(key)
        for part in parts:
            await self._desk.client.rpush(key, _encode(part))
            await self._desk.client.pexpire(key, KEPT_MS)
        await self._desk.client.hset(frozen, node_id, "")
        await self._desk.client.pexpire(frozen, KEPT_MS)

    async def frozen(self, rebuild_id: str) -> frozenset[str]:
        """Return the nodes that have handed over all they have."""
        key = self._keyspace.rebuild_frozen(rebuild_id)
        names = await self._desk.client.hkeys(key)
        return frozenset(text_of(name) for name in names)

    async def collect(self, rebuild_id: str, nodes: Iterable[str]) -> list[Handover]:
        """Return what nodes have handed over.

        Raises:
            msgspec.MsgspecError: A node of another version handed over what is not understood here.
        """
        handovers: list[Handover] = []
        for node_id in nodes:
            key = self._keyspace.rebuild_list(rebuild_id, node_id)
            count = await self._desk.client.llen(key)
            for index in range(count):
                part = await self._desk.client.lindex(key, index)
                if part is not None:
                    handovers.append(
                        _decoder.decode(part if isinstance(part, bytes) else part.encode())
                    )
        return handovers

    async def end(self, rebuild_id: str, nodes: Iterable[str]) -> None:
        """Remove what a rebuild has used."""
        lists = [self._keyspace.rebuild_list(rebuild_id, each) for each in nodes]
        await self._desk.client.delete(
            self._keyspace.rebuild, self._keyspace.rebuild_frozen(rebuild_id), *lists
        )
