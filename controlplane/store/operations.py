"""What an operator wants to know of the database."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.devices import Devices


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The version of the schema that the database has, and how many devices wait for approval."""

    schema: str
    pending_devices: int


async def ping(session: AsyncSession) -> None:
    """Ask the smallest question there is, to see how long the answer takes."""
    await (await session.connection()).execute(text("SELECT 1"))


async def state_of(session: AsyncSession) -> DatabaseState:
    """Return how the database is; `session` comes from `Store.reading()`."""
    connection = await session.connection()
    found = await connection.execute(text("SELECT version_num FROM alembic_version"))
    return DatabaseState(found.scalar_one(), await Devices(session).pending_count())
