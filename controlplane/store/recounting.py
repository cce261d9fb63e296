"""The ledger's sums made anew from its rows: the repair when something other than `controlplane.store.ledger` wrote rows.

A control plane of an older version does, which goes on running after `tollkeeper db upgrade`: it knows no sums, so it moves
none.
"""

from typing import Final

from sqlalchemy import select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.usage import UsageState
from controlplane.store import usage_totals, user_days
from controlplane.store.ledger import LEDGER
from controlplane.store.usage_totals import TOTALS
from controlplane.store.user_days import DAYS

# Added up in one go, some 20 ms during which this process does nothing else.
_ROWS_AT_ONCE: Final = 500
# Sums are written when so many are held, about 10 MB: writing takes longer than adding up, and most move again and again.
_SUMS_HELD: Final = 30_000
_COLUMNS: Final = dict.fromkeys(
    ("user_id", "usage_day", *user_days.AMOUNTS.values(), *usage_totals.LEDGER_COLUMNS)
)
# Readers go on. Whoever writes rows of the ledger moves these sums before it commits, in this order: it is either done
# when the lock is there, and its rows are seen, or its rows are not seen and it moves what is written here.
_LOCK: Final = text("LOCK TABLE usage_days, usage_totals IN SHARE ROW EXCLUSIVE MODE")


async def recount(session: AsyncSession) -> int:
    """Set the sums by subject and by user's day to what the rows of the ledger add up to; return how many rows count.

    Everybody else sees the sums as they were until `session` commits, and all of the new ones then. Who writes to the
    ledger meanwhile waits before the commit. Memory is bounded, however many rows there are.

    Args:
        session: Writes: of `Store.ledger()` or of a transaction. On SQLite it holds the write lock from its beginning.
    """
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        await connection.execute(_LOCK)
    await connection.execute(DAYS.delete())
    await connection.execute(TOTALS.delete())
    # One statement, so that all rows are of one instant. A batch that replaces rows so that no sum moves in the end waits
    # for no lock; between two statements it would be seen by half.
    statement = select(*(LEDGER.c[name] for name in _COLUMNS)).where(
        LEDGER.c.state != int(UsageState.RELEASED)
    )
    counted, moves = 0, usage_totals.no_moves()
    options = {"yield_per": _ROWS_AT_ONCE, "max_row_buffer": _ROWS_AT_ONCE}
    async with connection.stream(statement, execution_options=options) as found:
        async for rows in found.partitions():
            added = [row._asdict() for row in rows]
            await user_days.move(connection, added=added, taken=())
            usage_totals.add_up(moves, added)
            if len(moves) >= _SUMS_HELD:
                await usage_totals.apply(connection, moves)
                moves.clear()
            counted += len(added)
    await usage_totals.apply(connection, moves)
    return counted
