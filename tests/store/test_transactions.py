import asyncio
import contextlib
from datetime import UTC, datetime

import pytest
from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from controlplane.domain.errors import AlreadyExistsError, DomainError, StaleError
from controlplane.domain.kinds import Kind
from controlplane.store.changes import Changes, changes_since
from controlplane.store.database import Store
from controlplane.store.tables import AuditEntry, Organization, RevisionCounter, Tombstone, User
from controlplane.store.transactions import Transaction


def organization(tx: Transaction, name: str) -> Organization:
    return Organization(id=f"id-{name}", name=name, created_at=tx.now, updated_at=tx.now)


async def created(store: Store, name: str) -> int:
    async with store.transaction("ann", "CreateOrganization") as tx:
        tx.describe(name, {"name": name})
        await tx.organizations.add(organization(tx, name))
    return tx.revision


async def newest(store: Store, since: int = 0) -> Changes:
    async with store.reading() as session:
        return await changes_since(session, since)


async def audited(store: Store) -> list[AuditEntry]:
    async with store.reading() as session:
        return list((await session.exec(select(AuditEntry).order_by(AuditEntry.id))).all())  # type: ignore[arg-type]  # a column at run time


async def test_a_change_takes_the_next_revision_and_stamps_its_rows(store: Store) -> None:
    assert [await created(store, name) for name in ("a", "b")] == [1, 2]

    changes = await newest(store)

    assert changes.revision == 2
    assert {row.id: row.revision for row in changes.rows[Kind.ORGANIZATION]} == {
        "id-a": 1,
        "id-b": 2,
    }


async def test_a_transaction_without_changes_takes_no_revision(store: Store) -> None:
    await created(store, "a")
    heard: list[int] = []
    store.changed.listen(heard.append)

    async with store.transaction("ann", "UpdateOrganization") as tx:
        row = await tx.organizations.get_for_change("a")
        row.paused = False

    assert tx.revision == 1
    assert tx.committed_revision is None
    assert heard == []
    assert len(await audited(store)) == 1


async def test_the_audit_row_says_who_did_what_to_which(store: Store) -> None:
    await created(store, "a")

    [entry] = await audited(store)

    assert (entry.actor, entry.rpc, entry.resource) == ("ann", "CreateOrganization", "a")
    assert (entry.request, entry.revision) == ({"name": "a"}, 1)
    assert entry.at.tzinfo is UTC


async def test_a_failing_change_leaves_neither_row_nor_audit_nor_revision(store: Store) -> None:
    async def fail_before_the_commit() -> None:
        async with store.transaction("ann", "CreateOrganization") as tx:
            await tx.organizations.add(organization(tx, "a"))
            await tx.seal()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_before_the_commit()

    changes = await newest(store)
    assert changes.revision == 0
    assert changes.rows[Kind.ORGANIZATION] == []
    assert await audited(store) == []


async def test_a_commit_that_the_database_refuses_leaves_nothing(store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        await tx.organizations.add(organization(tx, "a"))

    async def take_the_name_again() -> None:
        async with store.transaction("ann", "x") as tx:
            tx.add(organization(tx, "b"))
            tx.add(Organization(id="other", name="a", created_at=tx.now, updated_at=tx.now))

    with pytest.raises(StaleError):
        await take_the_name_again()

    changes = await newest(store)
    assert changes.revision == 1
    assert [row.id for row in changes.rows[Kind.ORGANIZATION]] == ["id-a"]
    assert len(await audited(store)) == 1


async def test_a_discarded_change_is_checked_and_not_kept(store: Store) -> None:
    async def rehearse() -> int:
        async with store.transaction("ann", "x") as tx:
            tx.discard()
            await tx.organizations.add(organization(tx, "a"))
        return tx.revision

    assert await rehearse() == 0
    assert (await newest(store)).revision == 0
    await created(store, "a")
    with pytest.raises(AlreadyExistsError):
        await rehearse()


async def test_nothing_can_change_behind_the_seal(store: Store) -> None:
    async def change_too_late() -> None:
        async with store.transaction("ann", "x") as tx:
            tx.add(organization(tx, "a"))
            await tx.seal()
            tx.add(organization(tx, "b"))

    with pytest.raises(RuntimeError, match="sealed"):
        await change_too_late()

    assert (await newest(store)).revision == 0


async def test_a_deleted_row_leaves_a_tombstone(store: Store) -> None:
    await created(store, "a")
    async with store.transaction("ann", "DeleteOrganization") as tx:
        await tx.delete(await tx.organizations.get_for_change("a"))

    changes = await newest(store, since=1)

    assert changes.rows[Kind.ORGANIZATION] == []
    [stone] = changes.tombstones
    assert (stone.kind, stone.id, stone.revision) == ("organization", "id-a", 2)


async def test_what_exists_again_has_no_tombstone_in_the_difference(store: Store) -> None:
    await created(store, "a")
    for _ in range(2):
        async with store.transaction("ann", "x") as tx:
            await tx.delete(await tx.organizations.get_for_change("a"))
        await created(store, "a")

    changes = await newest(store, since=1)

    assert [row.revision for row in changes.rows[Kind.ORGANIZATION]] == [5]
    assert changes.tombstones == []


async def test_a_touched_row_travels_although_its_columns_stay(store: Store) -> None:
    await created(store, "a")
    async with store.transaction("ann", "x") as tx:
        tx.touch(await tx.organizations.get("a"))

    [row] = (await newest(store, since=1)).rows[Kind.ORGANIZATION]
    assert row.revision == tx.revision == 2


async def test_listeners_hear_of_a_change_after_its_commit(store: Store) -> None:
    heard: list[int] = []
    stop = store.changed.listen(heard.append)
    effects: list[int] = []

    async def effect() -> None:
        effects.append((await newest(store)).revision)

    async with store.transaction("ann", "x") as tx:
        tx.after_commit(effect)
        tx.add(organization(tx, "a"))
    stop()
    await created(store, "b")

    assert heard == [1]
    assert effects == [1]


async def test_concurrent_writers_leave_no_gap_and_commit_in_order(store: Store) -> None:
    heard: list[int] = []
    store.changed.listen(heard.append)
    writers = 24

    revisions = await asyncio.gather(*(created(store, f"o{n}") for n in range(writers)))

    assert sorted(revisions) == sorted(heard) == list(range(1, writers + 1))
    rows = (await newest(store)).rows[Kind.ORGANIZATION]
    assert sorted(row.revision for row in rows) == list(range(1, writers + 1))
    assert [entry.revision for entry in await audited(store)] == list(range(1, writers + 1))


async def test_writers_of_the_same_row_lose_no_change(store: Store) -> None:
    await created(store, "a")

    async def raise_cap() -> None:
        async with store.transaction("ann", "x") as tx:
            row = await tx.organizations.get_for_change("a")
            row.default_output_cap_tokens += 1

    await asyncio.gather(*(raise_cap() for _ in range(12)))

    [row] = (await newest(store)).rows[Kind.ORGANIZATION]
    assert isinstance(row, Organization)
    assert row.default_output_cap_tokens == 12
    assert row.revision == 13


async def test_one_of_two_writers_gets_a_name(store: Store) -> None:
    async def attempt() -> str:
        try:
            await created(store, "a")
        except DomainError as error:
            return type(error).__name__
        return "created"

    outcomes = await asyncio.gather(attempt(), attempt())

    assert sorted(outcomes)[1] == "created"
    assert sorted(outcomes)[0] in {"AlreadyExistsError", "StaleError"}


async def test_a_reader_sees_one_state_while_others_write(store: Store) -> None:
    await created(store, "a")
    async with store.reading() as session:
        before = await changes_since(session, 0)
        await created(store, "b")
        after = await changes_since(session, 0)

    assert before.revision == after.revision == 1
    assert len(after.rows[Kind.ORGANIZATION]) == 1


async def test_what_is_written_while_reading_is_not_kept(store: Store) -> None:
    # PostgreSQL refuses it at once; SQLite lets it stand until the end of the block.
    with contextlib.suppress(DBAPIError):
        async with store.reading() as session:
            session.add(Tombstone(kind="x", id="y", revision=1, deleted_at=datetime.now(UTC)))
            await session.flush()

    async with store.reading() as session:
        assert (await session.exec(select(Tombstone))).all() == []


async def test_the_ledger_is_written_without_a_revision(store: Store) -> None:
    async with store.ledger() as session:
        session.add(Tombstone(kind="x", id="y", revision=1, deleted_at=datetime.now(UTC)))

    async with store.reading() as session:
        assert (await session.exec(select(RevisionCounter))).one().revision == 0
        assert len((await session.exec(select(Tombstone))).all()) == 1


async def test_a_row_cannot_refer_to_what_does_not_exist(store: Store) -> None:
    with pytest.raises(StaleError):
        async with store.transaction("ann", "x") as tx:
            tx.add(
                User(id="u", name="a/b", organization_id="no", created_at=tx.now, updated_at=tx.now)
            )

    assert (await newest(store)).revision == 0


async def test_an_instant_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(Exception, match="time zone"):
        async with store.ledger() as session:
            session.add(Tombstone(kind="x", id="y", revision=1, deleted_at=datetime(2026, 1, 1)))  # noqa: DTZ001
