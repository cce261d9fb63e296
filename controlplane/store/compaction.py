"""Forgetting what nobody asks for any more: old tombstones and expired answers."""

from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.database import Store
from controlplane.store.tables import IdempotentAnswer, RevisionCounter, Tombstone
from controlplane.store.transactions import COUNTER_ID

TOMBSTONE_LIFETIME: Final = timedelta(days=7)


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
