"""`tollkeeper db`: the schema of the control plane's database."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from controlplane.cli.connection import data_dir, setting
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.options import Output
from controlplane.cli.output import Format, fail, print_one
from controlplane.cli.typer_apps import example, new_app

if TYPE_CHECKING:
    from sqlalchemy import URL

    from controlplane.store import schema
else:
    schema = imported_on_use("controlplane.store.schema")

app = new_app("The control plane's database, at TOLLKEEPER_DATABASE_URL.")

# A migration of a large ledger takes minutes; one that waits for another's lock that long is stuck.
_UPGRADE_S: Final = 3600.0
_LOOK_S: Final = 30.0
_Result = TypeVar("_Result")


@app.command(epilog=example("db upgrade"))
def upgrade(output: Output = Format.TABLE) -> None:
    """Bring the schema to this program's version. Repeating it does no harm."""
    reached = _run(schema.upgrade(_database_url()), _UPGRADE_S)
    print_one({"current": reached, "head": schema.head()}, output)


@app.command(epilog=example("db current -o json"))
def current(output: Output = Format.TABLE) -> None:
    """Show the schema's version, and the one that this program brings it to."""
    url = _database_url()
    found = None if _is_missing_file(url) else _run(schema.current(url), _LOOK_S)
    print_one({"current": found, "head": schema.head()}, output)


def _database_url() -> "URL":
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    given = setting("DATABASE_URL")
    if given is None:
        return URL.create("sqlite+aiosqlite", database=str(data_dir() / "controlplane.sqlite"))
    try:
        return make_url(given)
    except (ArgumentError, ValueError):
        # The text is not repeated: it may hold a password.
        fail("TOLLKEEPER_DATABASE_URL is not a database URL")


def _is_missing_file(url: "URL") -> bool:
    """Return whether opening the database would make it, which looking at it must not."""
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return is_file and not Path(str(url.database)).exists()


def _run(
    work: Coroutine[Any, Any, _Result],  # Any: what it yields and is sent is asyncio's own
    most_s: float,
) -> _Result:
    from alembic.util import CommandError
    from asyncpg import InterfaceError, PostgresError
    from sqlalchemy.exc import SQLAlchemyError

    async def within() -> _Result:
        async with asyncio.timeout(most_s):
            return await work

    try:
        return asyncio.run(within())
    except TimeoutError:
        fail(f"the database did not answer within {most_s:.0f} s")
    # A ValueError names a database that the control plane does not know.
    except (
        SQLAlchemyError,
        CommandError,
        PostgresError,
        InterfaceError,
        OSError,
        ValueError,
    ) as error:
        fail(f"the database failed: {error}")
