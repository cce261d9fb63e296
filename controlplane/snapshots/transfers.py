"""A snapshot on its way to a node, cut into messages.

Messages are made one at a time, when the stream is ready to take one: a node that reads slowly
costs a chunk of memory and not a configuration, and a revocation waits for one chunk at most.
Resources are not encoded again for each node: a chunk is their bytes, joined.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.bundles import Bundler
from controlplane.snapshots.encoding import chunk_response, removed_entry, secret_entry
from controlplane.snapshots.history import Item
from controlplane.snapshots.opening import SealedSecret
from controlplane.snapshots.scopes import Scope
from controlplane.snapshots.snapshot import Difference, Position, Snapshot, position_to_proto

# The contract allows 1 MiB. A quarter of it: what overtakes a transfer waits for less, and the
# event loop is held for about a millisecond.
CHUNK_BYTES: Final = 256 * 1024

# One resource must fit into one chunk of the contract, with room for its frame.
MAX_RESOURCE_BYTES: Final = 1024 * 1024 - 4096

# Entries looked at, and secrets sealed, before others have their turn: about a millisecond of each.
_LOOKED_AT_ONCE: Final = 4_096
_SEALED_AT_ONCE: Final = 8

Message = pb.StreamConfigResponse | bytes
"""What is said to a node; bytes are an encoded `StreamConfigResponse`."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer: where it leads, and its messages from begin to end, each made when asked for.

    None in between: nothing is ready yet, and others should have their turn.
    """

    transfer_id: int
    intent: pb.TransferIntent.ValueType
    to: Position
    resource_count: int
    messages: Iterator[Message | None]


def full_transfer(
    transfer_id: int,
    snapshot: Snapshot,
    scope: Scope,
    reason: pb.TransferReason.ValueType,
    bundler: Bundler,
    *,
    force: bool,
) -> Transfer:
    """Return a transfer of everything in `snapshot` that `scope` has.

    Args:
        transfer_id: Unique on its stream, rising.
        snapshot: What to send.
        scope: What of it.
        reason: Why everything is sent.
        bundler: Makes what carries the secrets.
        force: Tell the node to apply it although it removes most of what there is.
    """
    totals, to = snapshot.totals_in(scope), snapshot.position_in(scope)
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_FULL,
        reason=reason,
        to=position_to_proto(to),
        force=force,
        resource_count=totals.count,
        payload_bytes=totals.payload_bytes,
    )
    entries = _entries(snapshot.items(scope), bundler)
    return Transfer(transfer_id, begin.intent, to, totals.count, _messages(begin, entries))


def delta_transfer(
    transfer_id: int,
    difference: Difference,
    since: Position,
    to: Position,
    bundler: Bundler,
    *,
    force: bool,
) -> Transfer:
    """Return a transfer of what changed between the positions `since` and `to`.

    The secrets of credentials that changed are in it, also of those that changed hands and are new in the node's scope.
    """
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_DELTA,
        reason=pb.TRANSFER_REASON_CHANGED,
        to=position_to_proto(to),
        force=force,
        resource_count=len(difference.put),
        payload_bytes=difference.payload_bytes,
        **{"from": position_to_proto(since)},  # a word of Python's own
    )
    entries = _delta_entries(difference, bundler)
    return Transfer(transfer_id, begin.intent, to, begin.resource_count, _messages(begin, entries))


def empty_transfer(transfer_id: int, to: Position) -> Transfer:
    """Return a transfer that moves a node which has the content already to the position `to`."""
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_NONE,
        reason=pb.TRANSFER_REASON_CURRENT,
        to=position_to_proto(to),
    )
    return Transfer(transfer_id, begin.intent, to, 0, _messages(begin, ()))


def _messages(begin: pb.TransferBegin, entries: Iterable[bytes | None]) -> Iterator[Message | None]:
    yield pb.StreamConfigResponse(transfer_begin=begin)
    chunk_count = 0
    for chunk in _chunks(begin.transfer_id, entries):
        if chunk is not None:
            chunk_count += 1
        yield chunk
    end = pb.TransferEnd(transfer_id=begin.transfer_id, chunk_count=chunk_count)
    yield pb.StreamConfigResponse(transfer_end=end)


def _chunks(transfer_id: int, entries: Iterable[bytes | None]) -> Iterator[bytes | None]:
    parts: list[bytes] = []
    filled_bytes = 0
    for entry in entries:
        if entry is None:
            yield None
            continue
        if parts and filled_bytes + len(entry) > CHUNK_BYTES:
            chunk = chunk_response(transfer_id, parts)
            parts, filled_bytes = [], 0
            yield chunk
        parts.append(entry)
        filled_bytes += len(entry)
    if parts:
        yield chunk_response(transfer_id, parts)


def _delta_entries(difference: Difference, bundler: Bundler) -> Iterator[bytes | None]:
    yield from map(removed_entry, difference.removed)
    yield from _entries(difference.put, bundler)


def _entries(items: Iterable[Item | None], bundler: Bundler) -> Iterator[bytes | None]:
    """Yield the entries of resources, then those of their secrets; None where others should have their turn."""
    secrets: list[SealedSecret] = []
    for count, item in enumerate(items, start=1):
        if count % _LOOKED_AT_ONCE == 0:
            yield None
        if item is None:
            continue
        if item.secret is not None:
            secrets.append(item.secret)
        yield item.entry
    for count, secret in enumerate(secrets, start=1):
        bundle = bundler.bundle(secret)
        if bundle is not None:
            yield secret_entry(bundle)
        if count % _SEALED_AT_ONCE == 0:
            yield None
