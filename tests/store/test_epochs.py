import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from structlog.testing import capture_logs

from controlplane.domain.epochs import is_epoch
from controlplane.store.database import Store
from controlplane.store.database_states import (
    CLAIM_PAUSE,
    RPC_NAME,
    Cause,
    database_identity,
    is_other_database,
)
from controlplane.store.epochs import Epochs
from controlplane.store.position_marker import FILE_NAME, PositionMarker, SeenPosition
from controlplane.store.tables import AuditEntry, Organization, RevisionCounter
from tests.fixtures_databases import PostgresServer

DEADLINE_S = 10.0
POLL_S = 0.01


async def counter(store: Store) -> RevisionCounter:
    async with store.reading() as session:
        return (await session.exec(select(RevisionCounter))).one()


async def write(store: Store, *names: str) -> None:
    for name in names:
        async with store.transaction("ann", "Write") as tx:
            tx.add(Organization(id=name, name=name, created_at=tx.now, updated_at=tx.now))


async def beginnings(store: Store) -> list[AuditEntry]:
    """Return the audit rows of new epochs."""
    async with store.reading() as session:
        statement = select(AuditEntry).where(col(AuditEntry.rpc) == RPC_NAME)
        return list((await session.exec(statement)).all())


async def set_back(store: Store, revision: int) -> None:
    """Make the database look like an older state of itself."""
    async with store.ledger() as session:
        (await session.exec(select(RevisionCounter))).one().revision = revision


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not await holds():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(POLL_S)  # polled: it happens in another task


@asynccontextmanager
async def watching(epochs: Epochs) -> AsyncIterator[None]:
    """Start `epochs` and have them look after the database until the block ends."""
    await epochs.start()
    task = asyncio.create_task(epochs.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def marker(tmp_path: Path) -> PositionMarker:
    return PositionMarker(tmp_path)


def only(database: str) -> pytest.MarkDecorator:
    """Run a test on one of the databases: it is about what is particular to it."""
    return pytest.mark.parametrize("database_url", [database], indirect=True)


async def test_a_start_on_the_same_database_changes_nothing(store: Store, tmp_path: Path) -> None:
    await write(store, "a")
    before = await counter(store)

    for _ in range(3):
        await Epochs(store, marker(tmp_path)).start()

    after = await counter(store)
    assert (after.config_epoch, after.revision) == (before.config_epoch, 1)
    assert await beginnings(store) == []


@only("postgresql")
async def test_the_first_start_notes_which_database_it_is(store: Store) -> None:
    assert (await counter(store)).database_identity == ""

    await Epochs(store).start()

    cluster, number = (await counter(store)).database_identity.split(":")
    assert int(cluster) > 0
    assert int(number) > 0


@only("postgresql")
async def test_a_copy_of_a_database_begins_an_epoch_of_its_own(
    database_url: str, postgres_server: PostgresServer
) -> None:
    original = Store(database_url)
    await Epochs(original).start()
    await write(original, "a", "b")
    before = await counter(original)
    await original.close()
    name = postgres_server.create(database_url.partition("?")[0].rpartition("/")[2])
    store = Store(postgres_server.url_of(name))
    heard: list[int] = []
    store.changed.listen(heard.append)

    with capture_logs() as logs:
        await Epochs(store).start()
        await Epochs(store).start()

    after = await counter(store)
    [entry] = await beginnings(store)
    await store.close()
    postgres_server.drop(name)
    assert is_epoch(after.config_epoch)
    assert after.config_epoch > before.config_epoch
    assert after.revision == 2
    assert after.database_identity != before.database_identity
    assert (entry.actor, entry.resource, entry.revision) == ("system", Cause.OTHER_DATABASE, 2)
    assert entry.request["before"] == before.config_epoch
    assert heard == [2]
    [loud] = [each for each in logs if each["log_level"] == "error"]
    assert "revoke them again" in loud["event"]


@only("postgresql")
async def test_control_planes_that_notice_a_copy_at_once_begin_one_epoch(
    database_url: str,
) -> None:
    stores = [Store(database_url) for _ in range(4)]
    await Epochs(stores[0]).start()
    async with stores[0].ledger() as session:
        (await session.exec(select(RevisionCounter))).one().database_identity = "1:1"

    await asyncio.gather(*(Epochs(each).start() for each in stores))

    assert len(await beginnings(stores[0])) == 1
    for each in stores:
        await each.close()


@only("postgresql")
async def test_a_role_that_may_not_ask_for_the_cluster_still_knows_the_database(
    store: Store,
) -> None:
    async with store.engine.connect() as connection:
        # All of it is undone at the end: a role and a right belong to more than this database.
        await connection.execute(text("CREATE ROLE tollkeeper_plain"))
        await connection.execute(text("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"))
        await connection.execute(text("SET LOCAL ROLE tollkeeper_plain"))
        async with AsyncSession(connection) as session:
            identity = await database_identity(session)
        await connection.rollback()

    async with store.reading() as reading:
        known = await database_identity(reading)
    cluster, number = identity.split(":")
    assert cluster == ""
    assert number == known.split(":")[1]
    assert not is_other_database(known, identity)


@only("sqlite")
async def test_a_backup_that_is_put_back_begins_a_new_epoch(
    database_url: str, tmp_path: Path
) -> None:
    path, backup = tmp_path / "controlplane.sqlite", tmp_path / "backup.sqlite"
    store = Store(database_url)
    await write(store, "a")
    await store.close()
    shutil.copyfile(path, backup)
    store = Store(database_url)
    async with watching(Epochs(store, marker(tmp_path))):
        await write(store, "b", "c")
    before = await counter(store)
    await store.close()
    for each in tmp_path.glob("controlplane.sqlite*"):
        each.unlink()
    shutil.copyfile(backup, path)
    store = Store(database_url)

    await Epochs(store, marker(tmp_path)).start()
    await Epochs(store, marker(tmp_path)).start()

    after = await counter(store)
    [entry] = await beginnings(store)
    await store.close()
    assert after.config_epoch > before.config_epoch
    assert before.config_epoch in after.former_epochs
    assert after.revision == 1
    assert entry.resource == Cause.WENT_BACK
    assert entry.request["highest_known"] == 3


@only("sqlite")
async def test_a_backup_that_is_put_back_again_begins_another_epoch_even_if_the_clock_went_back(
    database_url: str, tmp_path: Path
) -> None:
    path, backup = tmp_path / "controlplane.sqlite", tmp_path / "backup.sqlite"
    store = Store(database_url)
    await write(store, "a")
    await store.close()
    shutil.copyfile(path, backup)
    epochs, clock = [], datetime.now(UTC)
    for _ in range(3):
        for each in tmp_path.glob("controlplane.sqlite*"):
            each.unlink()
        shutil.copyfile(backup, path)
        clock -= timedelta(days=1)
        store = Store(database_url, clock=lambda now=clock: now)  # type: ignore[misc] # its default
        async with watching(Epochs(store, marker(tmp_path))):
            await write(store, "b")
        epochs.append((await counter(store)).config_epoch)
        await store.close()

    assert epochs == sorted(set(epochs))


@only("sqlite")
async def test_a_new_database_beside_an_old_marker_keeps_its_epoch(
    store: Store, tmp_path: Path
) -> None:
    await marker(tmp_path).write(SeenPosition("t000000000001-0123456789ab", 99))
    before = await counter(store)

    await Epochs(store, marker(tmp_path)).start()

    assert (await counter(store)).config_epoch == before.config_epoch
    assert await marker(tmp_path).read() == SeenPosition(before.config_epoch, 0)


@only("sqlite")
@pytest.mark.parametrize("content", [b"", b"{", b'{"config_epoch": 1}', b"\xff"])
async def test_a_marker_that_cannot_be_read_is_replaced(
    store: Store, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    await write(store, "a")

    with capture_logs() as logs:
        await Epochs(store, marker(tmp_path)).start()

    assert await marker(tmp_path).read() == SeenPosition((await counter(store)).config_epoch, 1)
    assert await beginnings(store) == []
    assert [each["event"] for each in logs] == ["position file not read"]


@only("sqlite")
async def test_a_marker_that_cannot_be_written_stops_nothing(store: Store, tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    with capture_logs() as logs:
        await Epochs(store, marker(gone)).start()

    assert [each["event"] for each in logs] == ["position file not written"]


@only("sqlite")
async def test_the_marker_says_how_far_the_database_came_when_the_program_stops(
    store: Store, tmp_path: Path
) -> None:
    async with watching(Epochs(store, marker(tmp_path), poll_s=60)):
        await write(store, "a", "b")

    assert await marker(tmp_path).read() == SeenPosition((await counter(store)).config_epoch, 2)
    assert list(tmp_path.glob(f"{FILE_NAME}.*")) == []


async def test_a_database_that_goes_back_under_a_running_program_begins_a_new_epoch(
    store: Store,
) -> None:
    await write(store, "a", "b", "c")
    before = (await counter(store)).config_epoch

    async def is_new() -> bool:
        return (await counter(store)).config_epoch != before

    async with watching(Epochs(store, poll_s=POLL_S)):
        await set_back(store, 2)
        await eventually(is_new)

    assert (await counter(store)).revision == 2
    [entry] = await beginnings(store)
    assert (entry.resource, entry.request["highest_known"]) == (Cause.WENT_BACK, 3)


async def test_a_node_that_stays_ahead_of_the_database_begins_one_epoch_an_hour(
    store: Store,
) -> None:
    await write(store, "a")
    epochs = Epochs(store, poll_s=POLL_S)

    async def claim() -> None:
        epochs.position_ahead((await counter(store)).config_epoch, 7)

    async with watching(epochs):
        await claim()
        await eventually(lambda: has_begun(store, 1))
        with capture_logs() as logs:
            await claim()
            await eventually(lambda: true_of(any("within the last" in e["event"] for e in logs)))
        assert len(await beginnings(store)) == 1

        before = store.clock
        store.clock = lambda: before() + CLAIM_PAUSE + timedelta(seconds=1)
        await claim()
        await eventually(lambda: has_begun(store, 2))

    entry = (await beginnings(store))[0]
    assert (entry.resource, entry.request["highest_known"]) == (Cause.NODE_AHEAD, 7)
    assert (await counter(store)).revision == 1


async def has_begun(store: Store, epochs: int) -> bool:
    return len(await beginnings(store)) == epochs


async def true_of(fact: bool) -> bool:
    return fact


@pytest.mark.parametrize("revision", [1, 2])
async def test_a_claim_that_the_database_bears_out_begins_nothing(
    store: Store, revision: int
) -> None:
    await write(store, "a", "b")
    epochs = Epochs(store, poll_s=POLL_S)

    async with watching(epochs):
        epochs.position_ahead((await counter(store)).config_epoch, revision)
        epochs.position_ahead("t000000000001-0123456789ab", 99)
        await eventually(lambda: true_of(epochs.is_idle))

    assert await beginnings(store) == []


async def test_a_claim_that_comes_true_before_the_second_look_begins_nothing(
    store: Store,
) -> None:
    await write(store, "a")
    epochs = Epochs(store, poll_s=0.5)

    async with watching(epochs):
        epochs.position_ahead((await counter(store)).config_epoch, 2)
        # The first look is over within moments, the second one comes half a second after it.
        await write(store, "b")
        await eventually(lambda: true_of(epochs.is_idle))

    assert await beginnings(store) == []


@pytest.mark.parametrize(
    ("stored", "found", "is_other"),
    [
        ("", "", False),
        ("", "7:5", False),
        ("7:5", "7:5", False),
        ("7:5", "8:5", True),
        ("7:5", "7:6", True),
        ("7:5", ":5", False),
        (":5", "7:5", False),
        (":5", "7:6", True),
        ("7:5", "", False),
    ],
)
def test_two_databases_are_told_apart_by_what_both_say(
    stored: str, found: str, is_other: bool
) -> None:
    assert is_other_database(stored, found) is is_other
