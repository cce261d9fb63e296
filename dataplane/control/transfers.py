"""A transfer being received: nothing of it counts before its end."""

from dataclasses import dataclass, field
from typing import Final

from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.domain.digest import digest_of, resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position

MAX_RESOURCES: Final = 1_000_000
MAX_BYTES: Final = 512 * 1024 * 1024
_GUARDED_ENTRIES: Final = 100

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole configuration as received: what is compiled, hashed and written to disk."""

    position: Position
    resources: dict[Key, RawResource]
    secrets: dict[str, RawSecret]
    hashes: dict[Key, int] = field(default_factory=dict)


EMPTY: Final = Contents(Position("", 0, bytes(32)), {}, {})


class RefusedTransferError(Exception):
    """A transfer is refused whole; the old configuration stays."""

    def __init__(self, reason: pb.NackReason.ValueType, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.reason = reason
        self.problems = problems


@dataclass(slots=True)
class IncomingTransfer:
    """The chunks of one transfer, added up."""

    begin: pb.TransferBegin
    chunks: int = 0
    size_bytes: int = 0
    resources: dict[Key, RawResource] = field(default_factory=dict)
    removed: set[Key] = field(default_factory=set)
    secrets: dict[str, RawSecret] = field(default_factory=dict)

    def add(self, chunk: pb.TransferChunk) -> None:
        """Take a chunk.

        Raises:
            RefusedTransferError: It is larger than a node takes.
        """
        self.chunks += 1
        for each in chunk.resources:
            raw = RawResource(each.kind, each.id, each.revision, each.payload)
            self.resources[each.kind, each.id] = raw
            self.size_bytes += len(each.payload) + len(each.id)
        for ref in chunk.removed:
            self.removed.add((ref.kind, ref.id))
        for bundle in chunk.secrets:
            self.secrets[bundle.credential_id] = RawSecret(
                bundle.credential_id, bundle.version, Secret(bundle.secret)
            )
        if len(self.resources) > MAX_RESOURCES or self.size_bytes > MAX_BYTES:
            raise RefusedTransferError(pb.NACK_REASON_GUARD, "it is larger than this node takes")

    def contents(self, old: Contents, end: pb.TransferEnd) -> Contents:
        """Return what the configuration is after this transfer, checked against its digest.

        Raises:
            RefusedTransferError: Chunks are missing, it builds on another position, its digest is
                not the announced one, or it removes too much.
        """
        if end.chunk_count != self.chunks:
            raise RefusedTransferError(pb.NACK_REASON_POSITION, "chunks are missing")
        resources, secrets, hashes = self._merged(old)
        position = position_from_proto(self.begin.to)
        if digest_of(hashes.values()) != position.digest:
            raise RefusedTransferError(
                pb.NACK_REASON_DIGEST, "the content does not have the announced digest"
            )
        if not self.begin.force:
            _check_removals(old.resources, resources)
        return Contents(position, resources, secrets, hashes)

    def _merged(
        self, old: Contents
    ) -> tuple[dict[Key, RawResource], dict[str, RawSecret], dict[Key, int]]:
        if self.begin.intent == pb.TRANSFER_INTENT_FULL:
            fresh = {key: _hash(raw) for key, raw in self.resources.items()}
            return self.resources, self.secrets, fresh
        if self.begin.intent == pb.TRANSFER_INTENT_NONE:
            return old.resources, old.secrets, old.hashes
        if position_from_proto(getattr(self.begin, "from")) != old.position:
            raise RefusedTransferError(pb.NACK_REASON_POSITION, "it builds on another position")
        resources, hashes = dict(old.resources), dict(old.hashes)
        for key in self.removed:
            resources.pop(key, None)
            hashes.pop(key, None)
        resources.update(self.resources)
        hashes.update({key: _hash(raw) for key, raw in self.resources.items()})
        return resources, {**old.secrets, **self.secrets}, hashes


def position_from_proto(message: position_pb2.Position) -> Position:
    """Return a position of the contract as a value."""
    return Position(message.config_epoch, message.revision, message.digest)


def position_to_proto(position: Position) -> position_pb2.Position:
    """Return a position as it travels."""
    return position_pb2.Position(
        config_epoch=position.config_epoch, revision=position.revision, digest=position.digest
    )


def _hash(raw: RawResource) -> int:
    return resource_hash(raw.kind, raw.resource_id, raw.revision, raw.payload)


def _check_removals(old: dict[Key, RawResource], new: dict[Key, RawResource]) -> None:
    before: dict[int, int] = {}
    gone: dict[int, int] = {}
    for key in old:
        before[key[0]] = before.get(key[0], 0) + 1
        if key not in new:
            gone[key[0]] = gone.get(key[0], 0) + 1
    for kind, count in gone.items():
        if before[kind] > _GUARDED_ENTRIES and count * 2 > before[kind]:
            raise RefusedTransferError(
                pb.NACK_REASON_GUARD,
                f"it removes {count} of {before[kind]} resources of kind {kind}",
            )
