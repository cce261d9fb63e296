"""A snapshot on its way to a node, cut into messages.

Messages are made one at a time, when the stream is ready to take one: a node that reads slowly
costs a chunk of memory and not a configuration, and a revocation waits for one chunk at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.snapshot import Position, SealedSecret, Snapshot, position_to_proto

# The contract allows 1 MiB. A quarter of it: what overtakes a transfer waits for less, and the
# event loop is held for about a millisecond.
CHUNK_BYTES: Final = 256 * 1024

# One resource must fit into one chunk of the contract, with room for its frame.
MAX_RESOURCE_BYTES: Final = 1024 * 1024 - 4096

# Tag, length, kind and revision of one entry, rounded up.
_ENTRY_BYTES: Final = 48

SecretOpener = Callable[[SealedSecret], bytes | None]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer: where it leads, and its messages from begin to end, each made when asked for."""

    transfer_id: int
    intent: pb.TransferIntent.ValueType
    to: Position
    messages: Iterator[pb.StreamConfigResponse]


def full_transfer(
    transfer_id: int,
    snapshot: Snapshot,
    reason: pb.TransferReason.ValueType,
    open_secret: SecretOpener,
    *,
    force: bool,
) -> Transfer:
    """Return a transfer of everything in `snapshot`.

    Args:
        transfer_id: Unique on its stream, rising.
        snapshot: What to send.
        reason: Why everything is sent.
        open_secret: Returns a credential's secret, or None when it cannot be opened: the
            credential then travels without, and its node refuses calls that need it.
        force: Tell the node to apply it although it removes most of what there is.
    """
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_FULL,
        reason=reason,
        to=position_to_proto(snapshot.position),
        force=force,
    )
    chunks = _full_chunks(transfer_id, snapshot, open_secret)
    return Transfer(
        transfer_id, pb.TRANSFER_INTENT_FULL, snapshot.position, _messages(begin, chunks)
    )


def empty_transfer(transfer_id: int, to: Position) -> Transfer:
    """Return a transfer that moves a node which has the content already to the position `to`."""
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_NONE,
        reason=pb.TRANSFER_REASON_CURRENT,
        to=position_to_proto(to),
    )
    return Transfer(transfer_id, pb.TRANSFER_INTENT_NONE, to, _messages(begin, iter(())))


def _messages(
    begin: pb.TransferBegin, chunks: Iterator[pb.TransferChunk]
) -> Iterator[pb.StreamConfigResponse]:
    yield pb.StreamConfigResponse(transfer_begin=begin)
    chunk_count = 0
    for chunk in chunks:
        chunk_count += 1
        yield pb.StreamConfigResponse(transfer_chunk=chunk)
    end = pb.TransferEnd(transfer_id=begin.transfer_id, chunk_count=chunk_count)
    yield pb.StreamConfigResponse(transfer_end=end)


def _full_chunks(
    transfer_id: int, snapshot: Snapshot, open_secret: SecretOpener
) -> Iterator[pb.TransferChunk]:
    chunk = pb.TransferChunk(transfer_id=transfer_id)
    filled_bytes = 0
    for entry in _entries(snapshot, open_secret):
        entry_bytes = _size_of(entry)
        if filled_bytes and filled_bytes + entry_bytes > CHUNK_BYTES:
            yield chunk
            chunk = pb.TransferChunk(transfer_id=transfer_id)
            filled_bytes = 0
        if isinstance(entry, resources_pb2.Resource):
            chunk.resources.append(entry)
        else:
            chunk.secrets.append(entry)
        filled_bytes += entry_bytes
    if filled_bytes:
        yield chunk


def _entries(
    snapshot: Snapshot, open_secret: SecretOpener
) -> Iterator[resources_pb2.Resource | pb.SecretBundle]:
    yield from snapshot.resources.values()
    for sealed in snapshot.secrets.values():
        secret = open_secret(sealed)
        if secret is not None:
            yield pb.SecretBundle(
                credential_id=sealed.credential_id, version=sealed.version, secret=secret
            )


def _size_of(entry: resources_pb2.Resource | pb.SecretBundle) -> int:
    if isinstance(entry, resources_pb2.Resource):
        return len(entry.payload) + len(entry.id) + _ENTRY_BYTES
    return len(entry.secret) + len(entry.credential_id) + _ENTRY_BYTES
