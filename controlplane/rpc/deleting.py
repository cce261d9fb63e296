"""Deleting a resource with what belongs to it, and by force with what refers to it."""

from collections.abc import Callable, Sequence
from typing import Final

from tollkeeper.admin.v1 import changes_pb2

from controlplane.domain.errors import StillReferencedError
from controlplane.domain.kinds import Kind
from controlplane.rpc.revocations import REVOCABLE, Revoker, revoke_after_commit
from controlplane.store.dependents import dependents_of, label_of
from controlplane.store.tables import ConfigurationRow
from controlplane.store.transactions import Transaction

__all__ = ["REVOCABLE", "delete_row", "revoke_after_commit"]

# Who refers to others goes before what it refers to; each kind is written before the next.
_ORDER: Final = (
    Kind.SUBJECT_LIMITS,
    Kind.PRICE,
    Kind.RULE,
    Kind.API_KEY,
    Kind.DEVICE,
    Kind.CREDENTIAL,
    Kind.ROUTER,
    Kind.PROVIDER,
    Kind.USER,
    Kind.ORGANIZATION,
    Kind.TIER,
)


async def delete_row(
    tx: Transaction, revoker: Revoker, row: ConfigurationRow, *, force: bool
) -> Callable[[], changes_pb2.DeleteResult]:
    """Delete `row` and its parts, and by `force` what it owns and what refers to it; return the answer's maker.

    Who can no longer call is revoked after the commit, without waiting.

    Raises:
        StillReferencedError: Others depend on it, and `force` is not set; names them.
    """
    dependents = await dependents_of(tx, row)
    if dependents.referrers and not force:
        labels = [await label_of(tx, referrer) for referrer in dependents.referrers]
        raise StillReferencedError(await label_of(tx, row), labels)
    others = [*dependents.referrers, *dependents.parts]
    also_deleted = [await label_of(tx, other) for other in others]
    for whole in dependents.touched:
        tx.touch(whole)
    await _delete_in_order(tx, [row, *others])
    # Refusing an organization or a user refuses everything below it.
    for subject in [row] if row.KIND in REVOCABLE else dependents.referrers:
        if subject.KIND in REVOCABLE:
            await revoke_after_commit(tx, revoker, subject)
    return lambda: changes_pb2.DeleteResult(revision=tx.revision, also_deleted=also_deleted)


async def _delete_in_order(tx: Transaction, rows: Sequence[ConfigurationRow]) -> None:
    for kind in _ORDER:
        for row in rows:
            if row.KIND is kind:
                await tx.delete(row)
        await tx.session.flush()
    await tx.devices.forget_sightings([row.id for row in rows if row.KIND is Kind.DEVICE])
