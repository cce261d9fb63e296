"""What a node is sent next: the table of reconnects, as one pure function.

the node has …                                      it gets
nothing                                             FULL, FIRST
a position of another epoch                         FULL, EPOCH
an older position, or of another scope              DELTA, CHANGED, if it knows that; else FULL, UNSUITED
a position older than what deletions are told for   FULL, COMPACTED
a position whose digest is not that of its revision FULL, MISMATCH; UNSUITED if it had another scope
the content, under this or an older revision        NONE, CURRENT
a newer position                                    nothing: this control plane has to catch up first
"""

from dataclasses import dataclass

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.domain.epochs import is_epoch
from controlplane.snapshots.scopes import EVERYTHING, Scope
from controlplane.snapshots.snapshot import Difference, Position, Snapshot


@dataclass(frozen=True, slots=True)
class Decision:
    """Which transfer a node gets; `difference` is what a DELTA holds."""

    intent: pb.TransferIntent.ValueType
    reason: pb.TransferReason.ValueType
    difference: Difference | None = None


_CURRENT = Decision(pb.TRANSFER_INTENT_NONE, pb.TRANSFER_REASON_CURRENT)


def decide(
    snapshot: Snapshot,
    scope: Scope,
    applied: Position,
    *,
    has_delta: bool,
    wants_everything: bool = False,
) -> Decision:
    """Return what leads a node from `applied` to `snapshot`; the node must not be ahead of it (`is_ahead`).

    Args:
        snapshot: Where it is to be led.
        scope: What it is sent something of.
        applied: What it has.
        has_delta: It understands transfers of changes only.
        wants_everything: It refused a transfer because it does not fit what it has.
    """
    current = snapshot.position_in(scope)
    if not applied.config_epoch:
        return _full(pb.TRANSFER_REASON_FIRST)
    if applied.config_epoch != current.config_epoch:
        return _full(pb.TRANSFER_REASON_EPOCH)
    if wants_everything:
        return _full(pb.TRANSFER_REASON_MISMATCH)
    if applied.digest == current.digest:
        return _CURRENT
    if applied.revision >= current.revision:
        return _full(_reason_of_another_digest(snapshot, scope, applied))
    if applied.revision < snapshot.compacted_revision:
        return _full(pb.TRANSFER_REASON_COMPACTED)
    known = snapshot.former_digest(applied.revision, scope)
    if known is not None and known != applied.digest:
        return _full(_reason_of_another_digest(snapshot, scope, applied))
    if not has_delta:
        return _full(pb.TRANSFER_REASON_UNSUITED)
    # Where the digest of its revision is not known here, another control plane published that: the node checks the sum.
    difference = snapshot.difference_since(applied.revision, scope)
    if difference is None:
        return _full(pb.TRANSFER_REASON_COMPACTED)
    return Decision(pb.TRANSFER_INTENT_DELTA, pb.TRANSFER_REASON_CHANGED, difference)


def is_ahead(applied: Position, current: Position, *, is_epoch_checked: bool) -> bool:
    """Say whether a node has something newer than `current`, and must not be sent that.

    A later epoch counts as newer until the database was asked again (`is_epoch_checked`): if it has the earlier one even
    then, the node comes from another database.
    """
    if applied.config_epoch == current.config_epoch:
        return applied.revision > current.revision
    return (
        not is_epoch_checked
        and is_epoch(applied.config_epoch)
        and applied.config_epoch > current.config_epoch
    )


def _full(reason: pb.TransferReason.ValueType) -> Decision:
    return Decision(pb.TRANSFER_INTENT_FULL, reason)


def _reason_of_another_digest(
    snapshot: Snapshot, scope: Scope, applied: Position
) -> pb.TransferReason.ValueType:
    """Say why a node has another digest than its revision has in its scope: by its former scope, or by a fault."""
    if scope:
        is_now = applied.revision == snapshot.revision
        all_of_it = (
            snapshot.position.digest
            if is_now
            else snapshot.former_digest(applied.revision, EVERYTHING)
        )
        if applied.digest == all_of_it:
            return pb.TRANSFER_REASON_UNSUITED
    return pb.TRANSFER_REASON_MISMATCH
