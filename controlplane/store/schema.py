"""The schema's version: bring a database up to it, or ask where it stands.

Steps only go forward. Control planes of the version before are stopped first: they may not know of everything that a
change has to move with it on the new schema. Data planes know nothing of it and go on.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, text

from controlplane.store.database import open_engine

_FOLDER: Final = Path(__file__).parent / "migrations"
# Any number will do, as long as no other program on the same database takes it.
_MIGRATION_LOCK: Final = 0x746F6C6C


def head() -> str:
    """Return the newest version that this code knows."""
    version = ScriptDirectory.from_config(_config()).get_current_head()
    if version is None:
        raise RuntimeError("the migrations are missing")
    return version


async def upgrade(url: str | URL) -> str:
    """Bring the database to `head()` and return it; a database that is there already is left alone.

    All steps are one transaction. Programs that upgrade the same PostgreSQL at the same time wait for each other.
    """
    engine = open_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()
    return head()


async def current(url: str | URL) -> str | None:
    """Return the database's version, or None when it was never upgraded."""
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_current)
    finally:
        await engine.dispose()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
