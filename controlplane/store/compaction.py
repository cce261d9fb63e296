"""Forgetting what nobody asks for any more: old tombstones, former revisions, expired answers, devices nobody approved.

To be called now and then, by one control plane; a repetition is harmless, and so is another control plane that does the
same. What may be much is removed in parts, so that no writer waits for long.
"""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, cast, delete, exists, func, or_, tuple_, update
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.devices import PENDING_LIFETIME
from controlplane.domain.names import SubjectKind, subject_row_id
from controlplane.store.database import Store
from controlplane.store.fleet_tables import NodeSession, RevocationRow, RowVersion
from controlplane.store.service import SYSTEM_ACTOR
from controlplane.store.tables import IdempotentAnswer, RevisionCounter, Tombstone
from controlplane.store.transactions import COUNTER_ID

TOMBSTONE_LIFETIME: Final = timedelta(days=7)
REVOCATION_LIFETIME: Final = timedelta(days=7)
VERSION_LIFETIME: Final = timedelta(days=90)
"""So far back the configuration can be shown and returned to."""

SESSION_REMAINS: Final = timedelta(hours=1)

# So many in one transaction: it holds the writers' lock for some tens of milliseconds.
_FORGOTTEN_AT_ONCE: Final = 100
_VERSIONS_AT_ONCE: Final = 500

_VersionKey = tuple[str, str, int]


async def compact(store: Store) -> int:
    """Remove tombstones older than a week and what else ran out; return how many tombstones went.

    The counter remembers up to which revision deletions are forgotten, in the same transaction, so that nobody is told
    an incomplete difference.
    """
    async with store.ledger() as session:
        now = store.clock()
        await _drop(session, IdempotentAnswer, col(IdempotentAnswer.expires_at) <= now)
        await _drop(session, RevocationRow, col(RevocationRow.at) <= now - REVOCATION_LIFETIME)
        await _drop(session, NodeSession, col(NodeSession.heard_at) <= now - SESSION_REMAINS)
        horizon = await _newest_forgotten(session, now)
        if horizon is None:
            return 0
        await session.exec(
            update(RevisionCounter)
            .where(col(RevisionCounter.id) == COUNTER_ID)
            .values(compacted_revision=horizon)
        )
        return await _drop(session, Tombstone, col(Tombstone.revision) <= horizon)


async def _drop(session: AsyncSession, table: type[SQLModel], which: ColumnElement[bool]) -> int:
    return int((await session.exec(delete(table).where(which))).rowcount)


async def _newest_forgotten(session: AsyncSession, now: datetime) -> int | None:
    old = col(Tombstone.deleted_at) <= now - TOMBSTONE_LIFETIME
    return (await session.exec(select(func.max(Tombstone.revision)).where(old))).one()


async def forget_versions(store: Store) -> int:
    """Remove former versions of rows that only revisions older than `VERSION_LIFETIME` need; return how many went.

    Of each row the newest version at or before that revision stays, so that every revision since can be rebuilt. The
    counter says which is the oldest, before anything is removed.
    """
    horizon = await _begin_history_at(store)
    if horizon is None:
        return 0
    # Former ones first: a row whose end alone was gone would be there again.
    superseded = await _forget_versions(store, _is_superseded(horizon))
    return superseded + await _forget_versions(store, _is_end(horizon))


async def _begin_history_at(store: Store) -> int | None:
    """Return the newest revision that is older than the lifetime, from which on history is told; None: there is none."""
    old = col(RowVersion.at) <= store.clock() - VERSION_LIFETIME
    async with store.ledger() as session:
        horizon = (await session.exec(select(func.max(RowVersion.revision)).where(old))).one()
        if horizon is not None:
            counter = await session.get_one(RevisionCounter, COUNTER_ID)
            horizon = max(horizon, counter.history_from_revision)
            if horizon > counter.history_from_revision:
                await session.exec(
                    update(RevisionCounter)
                    .where(col(RevisionCounter.id) == COUNTER_ID)
                    .values(history_from_revision=horizon)
                )
    return horizon


def _is_superseded(horizon: int) -> ColumnElement[bool]:
    newer = aliased(RowVersion)
    return (col(RowVersion.revision) < horizon) & exists().where(
        col(newer.kind) == col(RowVersion.kind),
        col(newer.id) == col(RowVersion.id),
        col(newer.revision) > col(RowVersion.revision),
        col(newer.revision) <= horizon,
    )


def _is_end(horizon: int) -> ColumnElement[bool]:
    columns = col(RowVersion.columns)
    # The absence of columns is a null of the database or one of JSON.
    is_without = or_(columns.is_(None), cast(columns, Text) == "null")
    return (col(RowVersion.revision) <= horizon) & is_without


async def _forget_versions(store: Store, which: ColumnElement[bool]) -> int:
    """Remove these versions, in parts, in the order of their keys."""
    after: _VersionKey = ("", "", 0)
    gone = 0
    while keys := await _some_versions(store, which, after):
        async with store.ledger() as session:
            gone += await _drop(session, RowVersion, _version_key().in_(keys))
        after = keys[-1]
    return gone


def _version_key() -> Any:  # Any: a row of columns, whose type says nothing of its operators
    return tuple_(col(RowVersion.kind), col(RowVersion.id), col(RowVersion.revision))


async def _some_versions(
    store: Store, which: ColumnElement[bool], after: _VersionKey
) -> list[_VersionKey]:
    key = _version_key()
    statement = (
        select(RowVersion.kind, RowVersion.id, RowVersion.revision)
        .where(which, key > after)
        .order_by(col(RowVersion.kind), col(RowVersion.id), col(RowVersion.revision))
        .limit(_VERSIONS_AT_ONCE)
    )
    async with store.reading() as session:
        return [(kind, row_id, n) for kind, row_id, n in (await session.exec(statement)).all()]


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
