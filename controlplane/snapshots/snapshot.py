"""A whole configuration at one revision, as it is published."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.common.v1 import position_pb2

from controlplane.snapshots.history import Item, Log
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import EVERYTHING, Scope, contains, owners_in
from controlplane.snapshots.totals import FormerDigests, Totals, sum_of

# A node refuses a transfer that removes more than half of a kind with more than 100 entries: so
# never one that removes 50 or fewer.
_GUARDED_REMOVALS: Final = 50

# Nodes that follow are at one or two revisions; those that come back together after an outage at a few more.
_KEPT_DIFFERENCES: Final = 8


@dataclass(frozen=True, slots=True)
class Position:
    """Where a configuration stands: equal positions mean equal content."""

    config_epoch: str = ""
    revision: int = 0
    digest: bytes = b""

    def has_content_of(self, other: "Position") -> bool:
        """Say whether both hold the same resources, whatever their revisions.

        Changes that no data plane needs, such as a new administrator, raise the revision alone.
        """
        return self.config_epoch == other.config_epoch and self.digest == other.digest

    def is_at_least(self, revision: int, config_epoch: str) -> bool:
        """Say whether the change of `revision` is contained."""
        return self.config_epoch == config_epoch and self.revision >= revision


def position_from_proto(message: position_pb2.Position) -> Position:
    """Decode a position; an absent one is that of a node that has nothing."""
    return Position(message.config_epoch, message.revision, message.digest)


def position_to_proto(position: Position) -> position_pb2.Position:
    """Encode a position."""
    return position_pb2.Position(
        config_epoch=position.config_epoch, revision=position.revision, digest=position.digest
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """What leads a node of one scope from an older revision to that of a snapshot."""

    put: tuple[Item, ...]
    removed: tuple[ResourceKey, ...]
    payload_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All resources at one revision. Nothing that is seen through it changes after it was published."""

    config_epoch: str
    revision: int
    compacted_revision: int
    """What was deleted up to it is forgotten: what changed since an older revision cannot be told."""
    former_epochs: frozenset[str]
    """Those of this database before it was restored."""
    log: Log
    totals: Mapping[str, Totals]
    """By owner."""
    everything: Totals
    former: FormerDigests
    _differences: OrderedDict[tuple[int, Scope], Difference | None] = field(
        default_factory=OrderedDict
    )
    _positions: dict[Scope, Position] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """Where it stands for those who see everything."""
        return self.position_in(EVERYTHING)

    def position_in(self, scope: Scope) -> Position:
        """Return where it stands for a node of `scope`."""
        found = self._positions.get(scope)
        if found is None:
            found = Position(self.config_epoch, self.revision, self.totals_in(scope).digest)
            self._positions[scope] = found
        return found

    def totals_in(self, scope: Scope) -> Totals:
        """Return what the resources of `scope` amount to."""
        return self.everything if not scope else sum_of(owners_in(self.totals, scope))

    def items(self, scope: Scope = EVERYTHING) -> Iterator[Item | None]:
        """Yield every resource in `scope`, and None for each that is not in it, so that a long search can be left."""
        for item in self.log.seen_at(self.revision):
            yield item if contains(scope, item.owner) else None

    def difference_since(self, revision: int, scope: Scope) -> Difference | None:
        """Return what changed in `scope` after `revision`; None when that cannot be told any more.

        It costs what changed, not what there is. Made once for all nodes that are at `revision`, as long as they are few
        revisions.
        """
        key = revision, scope
        if key not in self._differences:
            while len(self._differences) >= _KEPT_DIFFERENCES:
                self._differences.popitem(last=False)
            self._differences[key] = self._difference(revision, scope)
        return self._differences[key]

    def _difference(self, revision: int, scope: Scope) -> Difference | None:
        if revision < self.compacted_revision:
            return None
        removals = list(self.log.removals_between(revision, self.revision, scope))
        if scope and any(removal.owner is None for removal in removals):
            # Naming it would tell of other organizations.
            return None
        put = tuple(
            item
            for item in self.log.seen_at(self.revision, since=revision)
            if contains(scope, item.owner)
        )
        gone = dict.fromkeys(removal.key for removal in removals)
        if gone:
            # What came back, or changed hands inside the scope, is not gone.
            for item in put:
                gone.pop(item.key, None)
        return Difference(put, tuple(gone), sum(item.payload_bytes for item in put))

    def former_digest(self, revision: int, scope: Scope) -> bytes | None:
        """Return the digest that `scope` had at a former revision of this epoch; None when it is not known."""
        return self.former.digest_at(revision, scope, self.totals)

    def has_mass_deletion_since(self, applied: Position, scope: Scope = EVERYTHING) -> bool:
        """Say whether administrators deleted so much that a node at `applied` would suspect a fault.

        The node's guard is against a control plane that lost its rows, or reads the wrong
        database: there nobody deleted anything, and the guard holds. Where deletions are forgotten
        they may have been many: a node that was away for so long must not stay with what is gone.
        Neither must one that comes from what this database was before it was restored.
        """
        if applied.config_epoch != self.config_epoch:
            return applied.config_epoch in self.former_epochs
        if applied.revision < self.compacted_revision:
            return True
        counts: dict[int, int] = {}
        for removal in self.log.removals_between(applied.revision, self.revision, scope):
            kind = removal.key.kind
            counts[kind] = counts.get(kind, 0) + 1
        return any(count > _GUARDED_REMOVALS for count in counts.values())
