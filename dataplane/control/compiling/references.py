"""Who refers to what: from an id to those that name it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dataplane.control.holdings import Key
from dataplane.control.slices import Slices
from dataplane.domain.sharded_map import MapEdition, ShardedMap

# A tuple takes a tenth of the room of a map, but the garbage collector looks through each once: through a
# million members in one go, if every organization's hundred users were in one.
_MOST_IN_A_TUPLE: Final = 8
# One, a few, or many. A single one is not wrapped: it is the most frequent.
_Members = Key | tuple[Key, ...] | ShardedMap[Key, None]


@dataclass(frozen=True, slots=True)
class References:
    """Those that name each id of one kind."""

    members: ShardedMap[str, _Members] = field(default_factory=ShardedMap)

    def of(self, resource_id: str) -> Iterable[Key]:
        """Return those that name `resource_id`, in no particular order."""
        members = self.members.get(resource_id, ())
        return members if isinstance(members, ShardedMap) else _few(members)


class ReferencesEdition:
    """Changed references in the making; what they began with stays as it is."""

    __slots__ = ("_edition", "_many", "_origin")

    def __init__(self, origin: References, expected: int = 0) -> None:
        """Begin with `origin`; one that is empty makes room for `expected` ids at once."""
        self._origin = origin
        self._edition = MapEdition(origin.members, expected)
        # Those of ids with many, as far as they change.
        self._many: dict[str, MapEdition[Key, None]] = {}

    def add(self, resource_id: str, key: Key) -> None:
        """Note that `key`, which did not, names `resource_id`."""
        many = self._many_of(resource_id)
        if many is not None:
            many.put(key, None)
            return
        members = self._edition.get(resource_id)
        few = _few(members) if isinstance(members, tuple) else ()
        if len(few) < _MOST_IN_A_TUPLE:
            self._edition.put(resource_id, (*few, key) if few else key)
        else:
            made = ShardedMap((each, None) for each in (*few, key))
            self._edition.put(resource_id, made)

    def discard(self, resource_id: str, key: Key) -> None:
        """Note that `key` no longer names `resource_id`, if it did."""
        many = self._many_of(resource_id)
        if many is not None:
            many.discard(key)
            return
        members = self._edition.get(resource_id)
        few = _few(members) if isinstance(members, tuple) else ()
        if key not in few:
            return
        others = tuple(each for each in few if each != key)
        if others:
            self._edition.put(resource_id, others if len(others) > 1 else others[0])
        else:
            self._edition.discard(resource_id)

    async def done(self, slices: Slices) -> References:
        """Return what came of it: the very references that it began with if nothing changed."""
        for resource_id, many in self._many.items():
            named_by = many.done()
            if named_by:
                self._edition.put(resource_id, named_by)
            else:
                self._edition.discard(resource_id)
            await slices.breathe()
        members = self._edition.done()
        return self._origin if members is self._origin.members else References(members)

    def _many_of(self, resource_id: str) -> MapEdition[Key, None] | None:
        many = self._many.get(resource_id)
        if many is None:
            members = self._edition.get(resource_id)
            if isinstance(members, ShardedMap):
                many = self._many[resource_id] = MapEdition(members)
        return many


def _few(members: Key | tuple[Key, ...]) -> tuple[Key, ...]:
    """Return one or a few as a tuple of them."""
    return (members,) if members and isinstance(members[0], int) else members
