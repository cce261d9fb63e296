"""A whole configuration at one revision, as it is published."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.references import ResourceKey


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
class SealedSecret:
    """A credential's secret as it rests in the database."""

    credential_id: str
    version: int
    sealed: bytes

    def __repr__(self) -> str:
        return f"SealedSecret({self.credential_id}, version {self.version})"


# A node refuses a transfer that removes more than half of a kind with more than 100 entries: so
# never one that removes 50 or fewer.
_GUARDED_REMOVALS: Final = 50


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources at one position. Nothing in it changes after it was published."""

    position: Position
    resources: Mapping[ResourceKey, resources_pb2.Resource]
    secrets: Mapping[str, SealedSecret]
    removals: Mapping[int, Sequence[int]]
    """By kind, the revisions at which resources were deleted by administrators, rising."""

    def has_mass_deletion_since(self, applied: Position) -> bool:
        """Say whether administrators deleted so much that a node at `applied` would suspect a fault.

        The node's guard is against a control plane that lost its rows, or reads the wrong
        database: there nobody deleted anything, and the guard holds.
        """
        if applied.config_epoch != self.position.config_epoch:
            return False
        return any(
            len(revisions) - bisect_right(revisions, applied.revision) > _GUARDED_REMOVALS
            for revisions in self.removals.values()
        )
