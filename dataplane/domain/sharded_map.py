"""A mapping that never changes, of which a changed copy costs the same however large it is.

A million entries in one dict cannot be copied, resized or freed without holding everything else up for
tens of milliseconds. Here they lie in shards of a few hundred. A copy shares all shards but those that it
changes: one other entry in a million copies one shard, and the directory of shards.

Which shard a key is in is said by the last bits of its hash: the directory has 2^depth places, and a shard
that looks at fewer bits than that stands in several of them (extendible hashing: Fagin et al., 1979). A
shard that grows beyond its bound becomes two, which differ in the next bit.
"""

from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from itertools import chain
from typing import Any, Final, Generic, TypeVar, overload

# Weighed for a million entries: of smaller shards the directory takes longer to copy than they do, and of
# larger ones a thousand changes copy everything.
MAX_SHARD_ENTRIES: Final = 256
# Enough for 10^8 entries. Beyond it shards grow: hashes that are all alike are never told apart.
_MAX_DEPTH: Final = 20

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


class ShardedMap(Mapping[K, V], Generic[K, V]):
    """An immutable mapping; `MapEdition` makes changed copies. Its order means nothing."""

    # The directory, how many bits each place's shard looks at, what picks a place, how many entries.
    __slots__ = ("__weakref__", "_depths", "_length", "_mask", "_shards")

    def __init__(self, items: Iterable[tuple[K, V]] = ()) -> None:
        """Hold `items`, of which the last one of a key counts; all in one go."""
        self._shards: list[dict[K, V]] = [{}]
        self._depths = bytearray(1)
        self._mask = 0
        self._length = 0
        edition = MapEdition(self)
        for key, value in items:
            edition.put(key, value)
        done = edition.done()
        self._shards, self._depths = done._shards, done._depths
        self._mask, self._length = done._mask, done._length

    @classmethod
    def _of(cls, shards: list[dict[K, V]], depths: bytearray, length: int) -> "ShardedMap[K, V]":
        it = cls.__new__(cls)
        it._shards, it._depths = shards, depths
        it._mask, it._length = len(shards) - 1, length
        return it

    def __getitem__(self, key: K) -> V:
        return self._shards[hash(key) & self._mask][key]

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:  # Any: as the overloads say
        """Return the value of `key`, or `default`."""
        return self._shards[hash(key) & self._mask].get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._shards[hash(key) & self._mask]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self.parts())

    def keys(self) -> KeysView[K]:
        """Return a view of the keys."""
        return KeysView(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of the entries."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values."""
        return _Values(self)

    def parts(self) -> Iterator[Mapping[K, V]]:
        """Yield all entries, some hundreds at a time, for work that must pause in between."""
        return _distinct(self._shards, self._depths)

    def remains(self) -> list[dict[K, V]]:
        """Return what it consists of, for whoever lets go of it in steps when nobody has the map.

        It must not be touched as long as somebody has.
        """
        return self._shards

    def __repr__(self) -> str:
        return f"ShardedMap({dict(self.items())!r})"


class _Items(ItemsView[K, V]):
    """Entries without looking each up by its key."""

    __slots__ = ()
    _mapping: ShardedMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return chain.from_iterable(part.items() for part in self._mapping.parts())


class _Values(ValuesView[V], Generic[K, V]):
    """Values without looking each up by its key."""

    __slots__ = ()
    _mapping: ShardedMap[K, V]

    def __iter__(self) -> Iterator[V]:
        return chain.from_iterable(part.values() for part in self._mapping.parts())


class MapEdition(Generic[K, V]):
    """A changed copy in the making; what it began with stays as it is.

    One step costs the copy of one shard at most.
    """

    __slots__ = ("_depths", "_length", "_mask", "_origin", "_own", "_shards")

    def __init__(self, origin: ShardedMap[K, V], expected: int = 0) -> None:
        """Begin with `origin`; one that is empty makes room for `expected` entries at once."""
        self._origin = origin
        self._shards, self._depths = origin._shards, origin._depths
        self._mask, self._length = origin._mask, origin._length
        # Shards that were made here, by identity: only they are written to.
        self._own: set[int] | None = None
        if expected > MAX_SHARD_ENTRIES and not origin:
            self._make_room(expected)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, key: K) -> bool:
        return key in self._shards[hash(key) & self._mask]

    def get(self, key: K) -> V | None:
        """Return the value of `key` as it is now, or None."""
        return self._shards[hash(key) & self._mask].get(key)

    def put(self, key: K, value: V) -> None:
        """Add an entry, or replace the one of `key`."""
        place = hash(key) & self._mask
        shard = self._shards[place]
        if self._own is None or id(shard) not in self._own:
            shard = self._owned(place)
        before = len(shard)
        shard[key] = value
        if len(shard) != before:
            self._length += 1
            if before >= MAX_SHARD_ENTRIES:
                self._split(place)

    def discard(self, key: K) -> V | None:
        """Remove the entry of `key`, if there is one, and return its value."""
        place = hash(key) & self._mask
        shard = self._shards[place]
        if key not in shard:
            return None
        if self._own is None or id(shard) not in self._own:
            shard = self._owned(place)
        self._length -= 1
        return shard.pop(key)

    def parts(self) -> Iterator[Mapping[K, V]]:
        """Yield all entries, some hundreds at a time; the edition must not change meanwhile."""
        return _distinct(self._shards, self._depths)

    def done(self) -> ShardedMap[K, V]:
        """Return what came of it: the very map that it began with if nothing was changed.

        The edition must not be used afterwards.
        """
        if self._own is None:
            return self._origin
        return ShardedMap._of(self._shards, self._depths, self._length)

    def _make_room(self, expected: int) -> None:
        depth = (2 * expected // MAX_SHARD_ENTRIES).bit_length()
        self._shards = [{} for _ in range(1 << depth)]
        self._depths = bytearray([depth]) * len(self._shards)
        self._mask = len(self._shards) - 1
        self._own = {id(shard) for shard in self._shards}

    def _owned(self, place: int) -> dict[K, V]:
        """Return the shard at `place` as one that may be written to."""
        if self._own is None:
            self._own = set()
            self._shards, self._depths = list(self._shards), bytearray(self._depths)
        copy = dict(self._shards[place])
        self._own.add(id(copy))
        step = 1 << self._depths[place]
        for each in range(place & (step - 1), len(self._shards), step):
            self._shards[each] = copy
        return copy

    def _split(self, place: int) -> None:
        """Make two of the shard at `place`, which was made here."""
        depth = self._depths[place]
        if depth >= _MAX_DEPTH:
            return
        step = 1 << depth
        if step == len(self._shards):
            self._shards *= 2
            self._depths *= 2
            self._mask = len(self._shards) - 1
        shard = self._shards[place]
        halves: tuple[dict[K, V], dict[K, V]] = {}, {}
        for key, value in shard.items():
            halves[bool(hash(key) & step)][key] = value
        for each in range(place & (step - 1), len(self._shards), step):
            self._shards[each] = halves[bool(each & step)]
            self._depths[each] = depth + 1
        own = self._own
        if own is not None:
            own.discard(id(shard))
            own.update(map(id, halves))


def _distinct(shards: list[dict[K, V]], depths: bytearray) -> Iterator[dict[K, V]]:
    """Yield each shard once: at the first of its places."""
    return (shard for place, shard in enumerate(shards) if not place >> depths[place])
