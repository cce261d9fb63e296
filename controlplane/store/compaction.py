"""Forgetting what nobody asks for any more: old tombstones, expired answers, devices that nobody approved."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.devices import PENDING_LIFETIME
from controlplane.domain.names import SubjectKind, subject_row_id
from controlplane.store.database import Store
from controlplane.store.service import SYSTEM_ACTOR
from controlplane.store.tables import IdempotentAnswer, RevisionCounter, Tombstone
from controlplane.store.transactions import COUNTER_ID

TOMBSTONE_LIFETIME: Final = timedelta(days=7)

# So many in one transaction: it holds the writers' lock for some tens of milliseconds.
_FORGOTTEN_AT_ONCE: Final = 100


async def compact(store: Store) -> int:
    """Remove tombstones older than a week and expired answers; return how many tombstones went.

    The counter remembers up to which revision deletions are forgotten, in the same transaction, so that nobody is told
    an incomplete difference. To be called now and then, by one control plane; a repetition is harmless.
    """
    async with store.ledger() as session:
        now = store.clock()
        await session.exec(delete(IdempotentAnswer).where(col(IdempotentAnswer.expires_at) <= now))
        horizon = await _newest_forgotten(session, store)
        if horizon is None:
            return 0
        await session.exec(
            update(RevisionCounter)
            .where(col(RevisionCounter.id) == COUNTER_ID)
            .values(compacted_revision=horizon)
        )
        gone = await session.exec(delete(Tombstone).where(col(Tombstone.revision) <= horizon))
        return int(gone.rowcount)


async def _newest_forgotten(session: AsyncSession, store: Store) -> int | None:
    old = col(Tombstone.deleted_at) <= store.clock() - TOMBSTONE_LIFETIME
    return (await session.exec(select(func.max(Tombstone.revision)).where(old))).one()


async def forget_pending_devices(store: Store) -> int:
    """Delete devices that waited for approval longer than `PENDING_LIFETIME`; return how many went.

    Changes of the configuration like any other, in parts of a hundred devices. To be called now and then; a repetition
    is harmless, and so is another control plane that does the same.

    Raises:
        DomainError: Others write for too long, or the database does not answer; the rest goes with the next call.
    """
    forgotten = 0
    while count := await _forget_some(store):
        forgotten += count
        if count < _FORGOTTEN_AT_ONCE:
            break
    return forgotten


async def _forget_some(store: Store) -> int:
    async with store.transaction(SYSTEM_ACTOR, "ForgetPendingDevices") as tx:
        horizon = tx.now - PENDING_LIFETIME
        devices = await tx.devices.pending_since(horizon, at_most=_FORGOTTEN_AT_ONCE)
        # Limits refer to their device: they go first. Nothing else can refer to one that waits.
        limits = await tx.limits.by_ids(
            [subject_row_id(SubjectKind.DEVICE, device.id) for device in devices]
        )
        for row in limits.values():
            await tx.delete(row)
        await tx.session.flush()
        for device in devices:
            await tx.delete(device)
        await tx.devices.forget_sightings([device.id for device in devices])
        tx.describe("", {"count": len(devices)})
        return len(devices)
