"""The configuration as it was last read, kept up to date change by change."""

import asyncio
from collections.abc import AsyncIterable
from typing import Final, NamedTuple

from tollkeeper.config.v1 import resources_pb2 as pb

from controlplane.domain.digest import resource_hash
from controlplane.snapshots.build import Built, Gone, ResourceBuilder
from controlplane.snapshots.consistency import ReferenceGraph
from controlplane.snapshots.encoding import decoded, resource_entry
from controlplane.snapshots.history import Item, Log, Removal
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import SHARED, UNRESOLVED, owner_of, parent_of
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.totals import NOTHING, FormerDigests, Totals, sum_of
from controlplane.snapshots.transfers import MAX_RESOURCE_BYTES
from controlplane.snapshots.urgency import is_urgent
from controlplane.store.changes import Changes

# Rows between two turns of the event loop: a few milliseconds of work.
_SLICE_ROWS: Final = 100


class WorkingState:
    """All resources by kind and id, with their owners, digests and references.

    What is read from it is a `Snapshot`, which later changes do not reach; see `history`.
    """

    def __init__(self) -> None:
        self.config_epoch = ""
        self.revision = 0
        self._compacted_revision = 0
        self._former_epochs: frozenset[str] = frozenset()
        self._builder = ResourceBuilder()
        self._graph = ReferenceGraph()
        self._items: dict[ResourceKey, Item] = {}
        self._log = Log([], [])
        self._totals: dict[str, Totals] = {SHARED: NOTHING}
        self._everything = NOTHING
        self._former = FormerDigests()
        self._oversized: set[ResourceKey] = set()

    async def apply(self, changes: Changes) -> bool:
        """Take in `changes`, in slices that leave the event loop to others in between.

        Returns whether they are urgent: something may be refused from now on that was admitted before.
        Must not be cancelled and used further: a part would be missing.
        """
        step = _Step(self.revision, changes.revision, self._everything.digest_sum)
        await self._take(changes, step)
        await self._finish(step, changes)
        return step.is_urgent

    async def load(self, parts: AsyncIterable[Changes]) -> None:
        """Take in everything, part by part; only for a state that is empty, and likewise.

        Owners come in the same part as what they own, or in one before.
        """
        step: _Step | None = None
        async for part in parts:
            step = step or _Step(0, part.revision, 0)
            await self._take(part, step)
            await self._put_arrived(step)
            last = part
        if step is not None:
            await self._finish(step, last)

    def __len__(self) -> int:
        """Return how many resources there are."""
        return len(self._items)

    def problems(self) -> list[str]:
        """Return why this state must not be published: at most 20 lines, none when it may."""
        oversized = [f"{key} is larger than a transfer takes" for key in sorted(self._oversized)]
        return [*map(str, self._graph.dangling()), *oversized][:20]

    @property
    def position(self) -> Position:
        """Where this state stands, for those who see everything."""
        return Position(self.config_epoch, self.revision, self._everything.digest)

    def snapshot(self) -> Snapshot:
        """Return this state as it is now; later changes do not reach it. It costs a step for each organization."""
        return Snapshot(
            self.config_epoch,
            self.revision,
            self._compacted_revision,
            self._former_epochs,
            self._log,
            dict(self._totals),
            self._everything,
            self._former,
        )

    def _resource(self, key: ResourceKey) -> pb.Resource | None:
        found = self._items.get(key)
        return decoded(found.entry) if found else None

    async def _take(self, changes: Changes, step: "_Step") -> None:
        """Encode what is new, and note what refers to what: whose it is can be said when all of it is there."""
        for arrived in self._builder.build(changes):
            if isinstance(arrived, Gone):
                self._graph.remove(arrived.key)
                step.stones.append(arrived)
            else:
                if not step.is_first:
                    step.is_urgent |= is_urgent(self._resource(arrived.key), arrived.resource)
                self._graph.put(arrived.key, arrived.references)
                step.arrived.append(_Arrived(self._item(arrived, step), _hash_of(arrived.resource)))
            if step.is_long():
                await asyncio.sleep(0)

    def _item(self, built: Built, step: "_Step") -> Item:
        key, resource = self._graph.known(built.key), built.resource
        entry = resource_entry(resource)
        if len(entry) > MAX_RESOURCE_BYTES:
            self._oversized.add(key)
        else:
            self._oversized.discard(key)
        at = step.at(resource.revision)
        return Item(key, UNRESOLVED, at, entry, len(resource.payload), built.secret)

    async def _finish(self, step: "_Step", changes: Changes) -> None:
        for stone in step.stones:
            self._remove(stone, step)
            if step.is_long():
                await asyncio.sleep(0)
        await self._put_arrived(step)
        if step.is_first:
            self._everything = sum_of(self._totals.values())
        else:
            self._former.note(self.revision, step.everything_before, step.changed)
        self.config_epoch = changes.config_epoch
        self.revision = changes.revision
        self._compacted_revision = changes.compacted_revision
        self._former_epochs = changes.former_epochs
        step.items.sort(key=lambda item: item.at)
        step.removals.sort(key=lambda removal: removal.at)
        self._log.items.extend(step.items)
        self._log.removals.extend(step.removals)
        self._log = self._log.rewritten(len(self._items), self._compacted_revision)

    async def _put_arrived(self, step: "_Step") -> None:
        for arrived in step.arrived:
            self._put(arrived, step)
            if step.is_long():
                await asyncio.sleep(0)
        step.arrived.clear()

    def _put(self, arrived: "_Arrived", step: "_Step") -> None:
        item = arrived.item
        item.owner = self._owner_of(item.key, step)
        former = self._items.get(item.key)
        is_elsewhere = former is None or former.owner != item.owner
        if former is not None:
            self._end(former, item.at, step, is_gone=is_elsewhere)
        self._add(item, arrived.hashed, step)
        if is_elsewhere and not step.is_first:
            self._move_dependents(item.key, item.at, step)

    def _owner_of(self, key: ResourceKey, step: "_Step") -> str:
        if step.is_first:
            # Nothing changes hands: what the owner was found to be of is looked up and not followed again.
            parent = parent_of(key, self._graph.targets_of(key))
            known = self._items.get(parent) if parent else None
            if known is not None:
                return known.owner
        return owner_of(key, self._graph.find_targets)

    def _remove(self, gone: Gone, step: "_Step") -> None:
        at = step.at(gone.revision)
        if step.is_first:
            # Whose it was is forgotten. An id may exist again.
            if self._graph.find_targets(gone.key) is None:
                step.removals.append(Removal(at, gone.key, None))
            return
        step.is_urgent = True
        former = self._items.pop(gone.key, None)
        self._oversized.discard(gone.key)
        if former is not None:
            self._end(former, at, step, is_gone=True)
        elif gone.key not in step.gone:
            # It came and went unseen, but another control plane may have shown it.
            step.removals.append(Removal(at, gone.key, None))
        step.gone.add(gone.key)

    def _move_dependents(self, parent: ResourceKey, at: int, step: "_Step") -> None:
        """Give what belongs to `parent` to its new owner: to the nodes of the former one it is gone."""
        for key in self._graph.sources_of(parent):
            former = self._items.get(key)
            if former is None or parent_of(key, self._graph.targets_of(key)) != parent:
                continue
            owner = owner_of(key, self._graph.find_targets)
            if owner == former.owner:
                continue
            at = max(at, former.at)
            self._end(former, at, step, is_gone=True)
            self._add(former.moved(owner, at), _hash_of(decoded(former.entry)), step)
            self._move_dependents(key, at, step)

    def _add(self, item: Item, hashed: int, step: "_Step") -> None:
        self._items[item.key] = item
        step.items.append(item)
        before = self._totals_before(item.owner, step)
        self._totals[item.owner] = before.with_one(hashed, item.payload_bytes)
        if not step.is_first:
            self._everything = self._everything.with_one(hashed, item.payload_bytes)

    def _end(self, item: Item, at: int, step: "_Step", *, is_gone: bool) -> None:
        item.ended = at
        if is_gone:
            step.removals.append(Removal(at, item.key, item.owner))
        hashed = _hash_of(decoded(item.entry))
        left = self._totals_before(item.owner, step).without_one(hashed, item.payload_bytes)
        self._everything = self._everything.without_one(hashed, item.payload_bytes)
        if left == NOTHING and item.owner != SHARED:
            del self._totals[item.owner]
        else:
            self._totals[item.owner] = left

    def _totals_before(self, owner: str, step: "_Step") -> Totals:
        found = self._totals.get(owner, NOTHING)
        if not step.is_first:
            step.changed.setdefault(owner, found.digest_sum)
        return found


class _Arrived(NamedTuple):
    """What is new or changed, and what it adds to the digest."""

    item: Item
    hashed: int


class _Step:
    """What one application of changes does to the history, until it is complete."""

    def __init__(self, before: int, after: int, everything_before: int) -> None:
        self.is_first = before == 0
        self.is_urgent = False
        self.stones: list[Gone] = []
        self.arrived: list[_Arrived] = []
        self.items: list[Item] = []
        self.removals: list[Removal] = []
        self.gone: set[ResourceKey] = set()
        self.changed: dict[str, int] = {}
        """By owner, the digest's sum as it was."""
        self.everything_before = everything_before
        self._before = before
        self._after = after
        self._count = 0

    def at(self, revision: int) -> int:
        """Return the revision from which on a change is seen.

        That of its row; but what is composed may change without its own row, and must not appear in what was published.
        """
        return revision if revision > self._before else self._after

    def is_long(self) -> bool:
        """Count a row; say whether others should have their turn before the next."""
        self._count += 1
        return self._count % _SLICE_ROWS == 0


def _hash_of(resource: pb.Resource) -> int:
    return resource_hash(resource.kind, resource.id, resource.revision, resource.payload)
