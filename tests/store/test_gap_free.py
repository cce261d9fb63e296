"""Revisions under concurrent writers of several control planes: no gap, in commit order, and no difference that lies."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from sqlmodel import col, select

from controlplane.domain.kinds import Kind
from controlplane.store.changes import Changes, changes_since
from controlplane.store.database import Store
from controlplane.store.fleet_tables import RowVersion
from controlplane.store.tables import AuditEntry, Organization

WRITERS = 6
WRITES_EACH = 8
NAMES = tuple("abcdefgh")

State = Mapping[str, tuple[int, int]]
"""By id: the row's revision, and one of its columns."""


@asynccontextmanager
async def control_planes(url: str) -> AsyncIterator[list[Store]]:
    stores = [Store(url), Store(url)]
    try:
        yield stores
    finally:
        for each in stores:
            await each.close()


async def write(store: Store, dice: random.Random) -> None:
    """Make, change or delete one to three rows in one transaction; some keep nothing."""
    async with store.transaction("ann", "Write") as tx:
        for name in sorted(dice.sample(NAMES, dice.randint(1, 3))):
            # Sorted, so that writers that meet wait for each other in one order.
            row = await tx.session.get(Organization, name, with_for_update=True)
            if row is None:
                await tx.organizations.add(
                    Organization(id=name, name=name, created_at=tx.now, updated_at=tx.now)
                )
            elif dice.random() < 0.3:
                await tx.delete(row)
            else:
                row.default_output_cap_tokens += 1
            await tx.session.flush()
            await asyncio.sleep(dice.random() * 0.003)  # lets others come between
        if dice.random() < 0.15:
            tx.discard()


async def write_often(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(WRITES_EACH):
        try:
            await write(store, dice)
        except Exception as error:
            # Two may make the same row at once; nothing of the loser's is kept.
            if type(error).__name__ not in ("StaleError", "AlreadyExistsError"):
                raise


def applied(state: State, changes: Changes) -> State:
    """Return `state` after a difference, as everybody who follows applies it."""
    after = dict(state)
    for stone in changes.tombstones:
        after.pop(stone.id, None)
    for row in changes.rows[Kind.ORGANIZATION]:
        assert isinstance(row, Organization)
        after[row.id] = (row.revision, row.default_output_cap_tokens)
    return after


async def read(store: Store, since: int) -> Changes:
    async with store.reading() as session:
        return await changes_since(session, since)


async def follow(store: Store, states: dict[int, State], stopped: asyncio.Event) -> None:
    """Read difference after difference, and note each state on the way."""
    revision, state = 0, dict[str, tuple[int, int]]()
    while True:
        is_last = stopped.is_set()
        changes = await read(store, revision)
        assert changes.revision >= revision
        state, revision = dict(applied(state, changes)), changes.revision
        states[revision] = state
        if is_last:
            return
        await asyncio.sleep(0)


async def rebuilt(store: Store) -> dict[int, State]:
    """Return the state at each revision, by the versions of the rows."""
    async with store.reading() as session:
        statement = select(RowVersion).order_by(col(RowVersion.revision))
        versions = (await session.exec(statement)).all()
    states: dict[int, State] = {0: {}}
    for version in versions:
        before = states.get(version.revision, states[max(states)])
        after = {key: value for key, value in before.items() if key != version.id}
        if version.columns is not None:
            cap = version.columns["default_output_cap_tokens"]
            after[version.id] = (version.columns["revision"], cap)
        states[version.revision] = after
    return states


@pytest.mark.parametrize("seed", range(2))
async def test_writers_leave_no_gap_and_every_difference_tells_exactly_what_changed(
    database_url: str, seed: int
) -> None:
    followed: dict[int, State] = {}
    stopped = asyncio.Event()
    async with control_planes(database_url) as (one, other):
        following = asyncio.create_task(follow(other, followed, stopped))
        await asyncio.gather(
            *(write_often((one, other)[n % 2], seed * 100 + n) for n in range(WRITERS))
        )
        stopped.set()
        await following

        states = await rebuilt(one)
        newest = max(states)
        async with one.reading() as session:
            audited = (
                await session.exec(select(AuditEntry.revision).order_by(col(AuditEntry.id)))
            ).all()
        # Gap-free, and the audit has one row for each.
        assert sorted(states) == list(range(newest + 1))
        assert sorted(audited) == list(range(1, newest + 1))
        assert newest > WRITERS
        # Whoever read in between saw every state whole, and missed nothing of it later.
        assert max(followed) == newest
        for revision, state in followed.items():
            assert state == states[revision]
        for since, state in states.items():
            assert applied(state, await read(one, since)) == states[newest]
