from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlmodel import SQLModel, col, select

from controlplane.store import compaction
from controlplane.store.compaction import (
    REVOCATION_LIFETIME,
    SESSION_REMAINS,
    VERSION_LIFETIME,
    compact,
    forget_versions,
)
from controlplane.store.database import Store
from controlplane.store.fleet_tables import NodeSession, RevocationRow, RowVersion
from controlplane.store.tables import Organization, RevisionCounter

SECOND = timedelta(seconds=1)


async def kept(store: Store, table: type[SQLModel]) -> int:
    async with store.reading() as session:
        return len((await session.exec(select(table))).all())


async def write(store: Store, *ids: str) -> int:
    """Make organizations, or raise the cap of those that are there; return the revision."""
    async with store.transaction("ann", "Write") as tx:
        for row_id in ids:
            row = await tx.session.get(Organization, row_id)
            if row is None:
                tx.add(Organization(id=row_id, name=row_id, created_at=tx.now, updated_at=tx.now))
            else:
                row.default_output_cap_tokens += 1
    return tx.revision


async def remove(store: Store, row_id: str) -> int:
    async with store.transaction("ann", "Remove") as tx:
        await tx.delete(await tx.session.get_one(Organization, row_id))
    return tx.revision


async def contents(store: Store, revision: int) -> Mapping[str, Any]:
    """Rebuild a revision as plainly as possible: the newest version of each row at or before it."""
    async with store.reading() as session:
        statement = (
            select(RowVersion)
            .where(col(RowVersion.revision) <= revision)
            .order_by(col(RowVersion.revision))
        )
        newest = {each.id: each.columns for each in (await session.exec(statement)).all()}
    return {row_id: columns for row_id, columns in newest.items() if columns is not None}


async def oldest_told(store: Store) -> int:
    async with store.reading() as session:
        return (await session.exec(select(RevisionCounter))).one().history_from_revision


def move_clock(store: Store, by: timedelta) -> None:
    before = store.clock
    store.clock = lambda: before() + by


@pytest.mark.parametrize("at_once", [1, 2, 500])
async def test_every_revision_of_the_last_ninety_days_can_still_be_rebuilt(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(compaction, "_VERSIONS_AT_ONCE", at_once)
    await write(store, "a", "b", "gone", "back")
    await write(store, "a", "gone", "back")
    await remove(store, "gone")
    await remove(store, "back")
    horizon = await write(store, "a", "back")
    move_clock(store, VERSION_LIFETIME + SECOND)
    newest = await write(store, "a", "new")
    newest = await remove(store, "b")
    before = {n: await contents(store, n) for n in range(horizon, newest + 1)}

    gone = await forget_versions(store)

    assert {n: await contents(store, n) for n in range(horizon, newest + 1)} == before
    assert sorted(before[horizon]) == ["a", "b", "back"]
    assert await oldest_told(store) == horizon
    # Two of `a`, three of `gone`, three of `back`.
    assert gone == 8
    assert await kept(store, RowVersion) == 6
    assert await forget_versions(store) == 0


async def test_younger_versions_stay(store: Store) -> None:
    for _ in range(3):
        await write(store, "a")
    move_clock(store, VERSION_LIFETIME - SECOND)

    assert await forget_versions(store) == 0
    assert await kept(store, RowVersion) == 3
    assert await oldest_told(store) == 0


async def test_history_never_begins_earlier_than_it_did(store: Store) -> None:
    async with store.ledger() as session:
        (await session.exec(select(RevisionCounter))).one().history_from_revision = 5
    await write(store, "a")
    move_clock(store, VERSION_LIFETIME + SECOND)

    await forget_versions(store)

    assert await oldest_told(store) == 5


def rows_of(now: datetime) -> list[tuple[SQLModel, timedelta]]:
    """Return one row of everything that runs out, made or ended now, and how long it stays."""
    return [
        (
            RevocationRow(revision=1, kind=3, subject_id="key-1", at=now),
            REVOCATION_LIFETIME,
        ),
        (
            NodeSession(control_plane_id="c", node_id="n", state=b"", heard_at=now),
            SESSION_REMAINS,
        ),
    ]


@pytest.mark.parametrize("index", range(2))
async def test_what_ran_out_is_forgotten_and_not_a_second_earlier(store: Store, index: int) -> None:
    row, lifetime = rows_of(store.clock())[index]
    table = type(row)
    async with store.ledger() as session:
        session.add(row)

    move_clock(store, lifetime - SECOND)
    await compact(store)
    assert await kept(store, table) == 1

    move_clock(store, 2 * SECOND)
    await compact(store)
    assert await kept(store, table) == 0
