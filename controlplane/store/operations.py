"""What an operator wants to know of the database."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.devices import Devices
from controlplane.store.service import SERVICE_ID
from controlplane.store.tables import ServiceSettings


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The version of the schema that the database has, how many devices wait for approval, and whether all calls are refused."""

    schema: str
    pending_devices: int
    is_paused: bool


async def ping(session: AsyncSession) -> None:
    """Ask the smallest question there is, to see how long the answer takes."""
    await (await session.connection()).execute(text("SELECT 1"))


async def state_of(session: AsyncSession) -> DatabaseState:
    """Return how the database is; `session` comes from `Store.reading()`."""
    connection = await session.connection()
    found = await connection.execute(text("SELECT version_num FROM alembic_version"))
    version = found.scalar_one()
    service = await session.get(ServiceSettings, SERVICE_ID)
    return DatabaseState(
        version,
        await Devices(session).pending_count(),
        service is not None and service.paused,
    )
