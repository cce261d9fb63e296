"""A transfer being received: nothing of it counts before its end.

Its resources are compared with what is held as they arrive, so that a transfer of everything which
changes little costs little: what is equal is the object that is held already. What the transfer does
to what is held is a `Change`; `dataplane/control/differences.py` finds it when all is here.

A peer is not trusted to keep to the contract: whatever it sends is taken or refused, within ceilings.
"""

from typing import Final

from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.holdings import Holdings, Key
from dataplane.control.raw_resources import RawResource, RawSecret
from dataplane.control.refused import RefusedTransferError
from dataplane.control.sealing import SealingKey, UnsealableError
from dataplane.control.slices import Remains, Slices
from dataplane.domain.digest import DIGEST_BYTES, resource_hash
from dataplane.domain.secret import Secret
from dataplane.domain.snapshot import Position

# What one node takes: ten times the largest configuration that is measured.
MAX_RESOURCES: Final = 1_000_000
MAX_BYTES: Final = 512 * 1024 * 1024
MAX_CHUNK_BYTES: Final = 1024 * 1024
_INTENTS: Final = frozenset(
    {pb.TRANSFER_INTENT_NONE, pb.TRANSFER_INTENT_DELTA, pb.TRANSFER_INTENT_FULL}
)
# What is malformed is answered like what builds on another position: a FULL is wanted.
MALFORMED: Final = pb.NACK_REASON_POSITION


class IncomingTransfer:
    """The chunks of one transfer, added up.

    Attributes:
        transfer_id: Its id on its stream.
        intent: How it relates to what the node has.
        start: DELTA: the position that it builds on.
        to: The position after it.
        is_forced: It may remove most of a kind.
        put: The resources so far; those that equal what is held are what is held.
        hashes: What each of them adds to the digest.
        counts: How many there are of each kind.
        total: The sum of `hashes`.
        removed: What is gone, of a DELTA.
        secrets: The secrets so far, by credential id.
    """

    def __init__(self, begin: pb.TransferBegin, sealing_key: SealingKey | None = None) -> None:
        """Open a transfer; secrets in it may be sealed to `sealing_key`.

        Raises:
            RefusedTransferError: What is announced is not what a node takes.
        """
        self.transfer_id = begin.transfer_id
        self.intent = begin.intent
        self.start = position_from_proto(getattr(begin, "from"))
        self.to = position_from_proto(begin.to)
        self.is_forced = begin.force
        self.put: dict[Key, RawResource] = {}
        self.hashes: dict[Key, int] = {}
        self.counts: dict[int, int] = {}
        self.total = 0
        self.removed: set[Key] = set()
        self.secrets: dict[str, RawSecret] = {}
        self._sealing_key = sealing_key
        self._announced_resources = begin.resource_count
        self._announced_bytes = begin.payload_bytes
        self._chunks = 0
        self._payload_bytes = 0
        # Ids and secrets too: they take memory as well as payloads do.
        self._size_bytes = 0
        self._check_announced()

    async def add(self, chunk: pb.TransferChunk, held: Holdings) -> None:
        """Take a chunk, comparing it with what is `held`; the event loop is given back in between.

        Raises:
            RefusedTransferError: It is larger than a node takes or than was announced, holds something
                twice or what its intent does not allow, or a secret cannot be opened. The transfer
                is over then.
        """
        self._chunks += 1
        if chunk.ByteSize() > MAX_CHUNK_BYTES:
            raise RefusedTransferError(pb.NACK_REASON_GUARD, "a chunk is larger than 1 MiB")
        self._check_allowed(chunk)
        slices = Slices()
        for each in chunk.resources:
            self._put(each, held)
            if slices.is_over:
                await slices.breathe()
        for ref in chunk.removed:
            self._remove(ref)
            if slices.is_over:
                await slices.breathe()
        for bundle in chunk.secrets:
            self._keep_secret(bundle)
            await slices.breathe()
        self._check_size()

    def remains(self) -> list[Remains]:
        """Return what it still holds, to be let go of in slices; it holds nothing after."""
        remains: list[Remains] = [self.put, self.hashes]
        self.put, self.hashes = {}, {}
        return remains

    def check_complete(self, end: pb.TransferEnd) -> None:
        """Check that all chunks are here.

        Raises:
            RefusedTransferError: Some are not.
        """
        if end.chunk_count != self._chunks:
            raise RefusedTransferError(MALFORMED, "chunks are missing")

    def _check_announced(self) -> None:
        if self.intent not in _INTENTS:
            raise RefusedTransferError(MALFORMED, "its intent is not known to this node")
        if not self.to.config_epoch or self.to.revision < 0:
            raise RefusedTransferError(MALFORMED, "it does not say which position it leads to")
        if len(self.to.digest) != DIGEST_BYTES:
            raise RefusedTransferError(pb.NACK_REASON_DIGEST, "its digest is not one")
        if self._announced_resources > MAX_RESOURCES or self._announced_bytes > MAX_BYTES:
            raise _too_large()

    def _check_allowed(self, chunk: pb.TransferChunk) -> None:
        if self.intent == pb.TRANSFER_INTENT_NONE and (chunk.resources or chunk.removed):
            raise RefusedTransferError(MALFORMED, "it holds changes and says that there are none")
        if self.intent == pb.TRANSFER_INTENT_FULL and chunk.removed:
            raise RefusedTransferError(MALFORMED, "a transfer of everything removes nothing")

    def _put(self, each: resources_pb2.Resource, held: Holdings) -> None:
        kind, resource_id, revision = each.kind, each.id, each.revision
        key = kind, resource_id
        if key in self.put or key in self.removed:
            raise _twice(kind, resource_id)
        if kind < 0 or revision < 0:
            problem = f"kind {kind}, {resource_id[:100]}: its kind and its revision are not numbers"
            raise RefusedTransferError(MALFORMED, f"{problem} that the digest knows")
        payload = each.payload
        old = held.resources.get(key)
        if old is not None and old.revision == revision and old.payload == payload:
            self.put[key], added = old, held.hashes[key]
        else:
            # One text for an id, however often its resource changes.
            resource_id = resource_id if old is None else old.resource_id
            self.put[key] = RawResource(kind, resource_id, revision, payload)
            added = resource_hash(kind, resource_id, revision, payload)
        self.hashes[key] = added
        self.total += added
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._payload_bytes += len(payload)
        self._size_bytes += len(payload) + len(resource_id)

    def _remove(self, ref: resources_pb2.ResourceRef) -> None:
        key = ref.kind, ref.id
        if key in self.put:
            raise _twice(*key)
        self.removed.add(key)
        self._size_bytes += len(ref.id)

    def _keep_secret(self, bundle: pb.SecretBundle) -> None:
        credential_id, version = bundle.credential_id, bundle.version
        secret = Secret(bundle.secret)
        if bundle.sealed:
            secret = self._opened(credential_id, version, bundle.sealed)
        self.secrets[credential_id] = RawSecret(credential_id, version, secret)
        self._size_bytes += len(secret.reveal()) + len(credential_id)

    def _opened(self, credential_id: str, version: int, sealed: bytes) -> Secret:
        problem = f"the secret of the credential {credential_id[:100]} cannot be opened"
        if self._sealing_key is None:
            raise RefusedTransferError(pb.NACK_REASON_INVALID, problem)
        try:
            return self._sealing_key.open(credential_id, version, sealed)
        except UnsealableError:
            raise RefusedTransferError(pb.NACK_REASON_INVALID, problem) from None

    def _check_size(self) -> None:
        entries = max(len(self.put), len(self.removed), len(self.secrets))
        if entries > MAX_RESOURCES or self._size_bytes > MAX_BYTES:
            raise _too_large()
        if 0 < self._announced_resources < len(self.put) or (
            0 < self._announced_bytes < self._payload_bytes
        ):
            raise RefusedTransferError(MALFORMED, "it holds more than it announced")


def position_from_proto(message: position_pb2.Position) -> Position:
    """Return a position of the contract as a value."""
    return Position(message.config_epoch, message.revision, message.digest)


def position_to_proto(position: Position) -> position_pb2.Position:
    """Return a position as it travels."""
    return position_pb2.Position(
        config_epoch=position.config_epoch, revision=position.revision, digest=position.digest
    )


def _too_large() -> RefusedTransferError:
    return RefusedTransferError(pb.NACK_REASON_GUARD, "it is larger than this node takes")


def _twice(kind: int, resource_id: str) -> RefusedTransferError:
    return RefusedTransferError(MALFORMED, f"kind {kind}, {resource_id[:100]}: it is there twice")
