"""PostgreSQL connections that stay open for what lives in a session: notifications, and the lock of a leader."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from controlplane.store.database import Store

# A server or a network that does not answer a trivial statement for so long counts as away.
STATEMENT_DEADLINE_S: Final = 2.0

_CLOSING_DEADLINE_S: Final = 1.0

CONNECTION_ERRORS: Final = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
"""What a connection that cannot be made or used raises."""


@contextlib.asynccontextmanager
async def own_connection(store: Store) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection outside of the pool, made with the same options as those in it; it is closed with the block.

    Only for PostgreSQL. Nothing runs in a transaction on it unless that is begun.

    Raises:
        SQLAlchemyError, OSError, TimeoutError: The server cannot be reached.
    """
    async with store.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        if not isinstance(driver, asyncpg.Connection):
            raise TypeError("only PostgreSQL has sessions that outlive a transaction")
        await connection.run_sync(lambda each: each.detach())
        # Pinging it on its way out of the pool, and finding out its version, may have begun one.
        await connection.rollback()
        try:
            yield driver
        finally:
            # Asking a dead server to close takes as long as its death is not noticed.
            with contextlib.suppress(*CONNECTION_ERRORS):
                await driver.close(timeout=_CLOSING_DEADLINE_S)
