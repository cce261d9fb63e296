"""Every resource as it came and went, in the order of revisions: what a transfer is read from.

An item is one content of one resource, from the revision `at` on until, below `ended`. A snapshot is a revision: it sees
the items that began and did not end at it. So publishing copies nothing, a change costs what it changes, and a stream
that is slow reads on in the state that it began with, while newer items are appended behind its back.

    at 1: key-1 ──────────┐
    at 2: key-2 ──────────┼──────────▶      a snapshot of revision 2 sees key-1 and key-2,
    at 3:                 └ key-1 ───▶      one of revision 3 the newer key-1; since 2 only key-1 changed
"""

import sys
from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from controlplane.snapshots.opening import SealedSecret
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import Scope, contains

FOREVER: Final = sys.maxsize

# Lists that are shorter are not worth rewriting.
_LEAST_REWRITTEN: Final = 1_000

_AT: Final = attrgetter("at")


class Item:
    """One content of one resource. Only `ended` changes, once."""

    __slots__ = ("at", "ended", "entry", "key", "owner", "payload_bytes", "secret")

    def __init__(
        self,
        key: ResourceKey,
        owner: str,
        at: int,
        entry: bytes,
        payload_bytes: int,
        secret: SealedSecret | None = None,
    ) -> None:
        self.key = key
        self.owner = owner
        self.at = at
        self.ended = FOREVER
        self.entry = entry
        self.payload_bytes = payload_bytes
        self.secret = secret

    def moved(self, owner: str, at: int) -> "Item":
        """Return the same content in the possession of another owner from the revision `at` on."""
        return Item(self.key, owner, at, self.entry, self.payload_bytes, self.secret)


class Removal(NamedTuple):
    """A resource was not among its owner's any more from the revision `at` on: deleted, or another's."""

    at: int
    key: ResourceKey
    owner: str | None
    """None: it is not known any more whose it was."""


class Log:
    """Items or removals by the revision at which they began, rising. Appended to while it is read."""

    __slots__ = ("items", "removals")

    def __init__(self, items: list[Item], removals: list[Removal]) -> None:
        self.items = items
        self.removals = removals

    def seen_at(self, revision: int, since: int = 0) -> Iterator[Item]:
        """Yield what is there at `revision` and began above `since`."""
        items = self.items
        for index in range(bisect_right(items, since, key=_AT), len(items)):
            item = items[index]
            if item.at > revision:
                return
            if item.ended > revision:
                yield item

    def removals_between(self, since: int, revision: int, scope: Scope) -> Iterator[Removal]:
        """Yield what left `scope` above `since` and up to `revision`, and all of which that is not known."""
        removals = self.removals
        for index in range(bisect_right(removals, since, key=_AT), len(removals)):
            removal = removals[index]
            if removal.at > revision:
                return
            if removal.owner is None or contains(scope, removal.owner):
                yield removal

    def rewritten(self, alive: int, forgotten_revision: int) -> "Log":
        """Return a log without what no later snapshot asks for; itself while that is little.

        Who reads this one goes on doing so.

        Args:
            alive: How many of the items have not ended.
            forgotten_revision: Removals up to it are not told any more.
        """
        items, removals = self.items, self.removals
        if len(items) > 2 * alive + _LEAST_REWRITTEN:
            items = [item for item in items if item.ended == FOREVER]
        forgotten = bisect_right(removals, forgotten_revision, key=_AT)
        if forgotten > _LEAST_REWRITTEN:
            removals = removals[forgotten:]
        if len(removals) > 2 * alive + 100 * _LEAST_REWRITTEN:
            removals = _latest(removals)
        if items is self.items and removals is self.removals:
            return self
        return Log(items, removals)


def _latest(removals: list[Removal]) -> list[Removal]:
    """Return the last removal of each resource from each owner, rising."""
    found = {(removal.key, removal.owner): removal for removal in removals}
    return sorted(found.values(), key=_AT)
