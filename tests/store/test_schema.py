from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlmodel import SQLModel, select

from controlplane.domain.epochs import is_epoch
from controlplane.store import schema
from controlplane.store.database import Store, open_engine
from controlplane.store.tables import RevisionCounter


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, SQLModel.metadata))


async def test_the_migrated_schema_is_what_the_tables_say(empty_database_url: str) -> None:
    await schema.upgrade(empty_database_url)

    engine = open_engine(empty_database_url)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == []


async def test_a_database_knows_its_version(empty_database_url: str) -> None:
    assert await schema.current(empty_database_url) is None

    assert await schema.upgrade(empty_database_url) == schema.head()
    assert await schema.current(empty_database_url) == schema.head()


async def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    await schema.upgrade(empty_database_url)
    before = await counter(empty_database_url)

    await schema.upgrade(empty_database_url)

    assert await counter(empty_database_url) == before
    assert before.revision == 0
    assert is_epoch(before.config_epoch)


async def counter(url: str) -> RevisionCounter:
    store = Store(url)
    async with store.reading() as session:
        found = (await session.exec(select(RevisionCounter))).one()
    await store.close()
    return found
