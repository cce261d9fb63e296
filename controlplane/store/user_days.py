"""What users used by day: sums that are kept, so that nobody adds up a ledger to answer a question.

They move in the transaction of each change of the ledger, by the difference, so they are always what the ledger would add
up to. A day is the calendar day of the user's organization, `20261121`, as the record of the request carries it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, case, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.tables import UsageDay

DAYS: Final[Table] = UsageDay.metadata.tables["usage_days"]

AMOUNTS: Final = {
    "input_tokens": "input_total_tokens",
    "output_tokens": "output_tokens",
    "charged_nanousd": "charged_nanousd",
}
"""Which column of the ledger each sum adds up, beside the number of requests."""

Row = Mapping[str, Any]  # Any: a value of any column


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over requests; money in nano-USD."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charged_nanousd: int = 0


async def move(connection: AsyncConnection, *, added: Iterable[Row], taken: Iterable[Row]) -> None:
    """Add rows of the ledger to the sums of their days, and take away what they replaced.

    Args:
        connection: In the transaction that changes the ledger.
        added: Rows that count from now on.
        taken: What counted before and does not any more.
    """
    moves = _moves(added, taken)
    if not moves:
        return
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(DAYS)
    values = {name: DAYS.c[name] + statement.excluded[name] for name in ("requests", *AMOUNTS)}
    statement = statement.on_conflict_do_update(
        index_elements=["user_id", "usage_day"], set_=values
    )
    # In one order everywhere, so that two batches cannot wait for each other.
    await connection.execute(statement, [moves[key] for key in sorted(moves)])


def _moves(added: Iterable[Row], taken: Iterable[Row]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return by how much each day of each user moves; days that do not move have none."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (1 + len(AMOUNTS)))
    for rows, sign in ((added, 1), (taken, -1)):
        for row in rows:
            day = sums[row["user_id"], row["usage_day"]]
            day[0] += sign
            for index, column in enumerate(AMOUNTS.values(), start=1):
                day[index] += sign * row[column]
    return {
        (user_id, usage_day): {
            "user_id": user_id,
            "usage_day": usage_day,
            **dict(zip(("requests", *AMOUNTS), day, strict=True)),
        }
        for (user_id, usage_day), day in sums.items()
        if any(day)
    }


async def sums_of(
    session: AsyncSession, user_id: str, usage_day: str, usage_month: str
) -> tuple[UsageTotals, UsageTotals, UsageTotals]:
    """Return what a user used since always, in a month (`202611`) and on a day (`20261121`)."""
    # Digits sort before every letter, so the days of a month are between the two.
    in_month = (DAYS.c.usage_day >= f"{usage_month}00") & (DAYS.c.usage_day < f"{usage_month}a")
    periods: tuple[ColumnElement[bool] | None, ...] = (
        None,
        in_month,
        DAYS.c.usage_day == usage_day,
    )
    sums = [
        func.coalesce(func.sum(_within(period, DAYS.c[name])), 0)
        for period in periods
        for name in ("requests", *AMOUNTS)
    ]
    statement = select(*sums).where(DAYS.c.user_id == user_id)
    found = (await (await session.connection()).execute(statement)).one()
    # PostgreSQL sums bigint into numeric, which arrives as Decimal.
    numbers = [int(value) for value in found]
    width = 1 + len(AMOUNTS)
    total, month, day = (
        UsageTotals(*numbers[start : start + width]) for start in range(0, len(numbers), width)
    )
    return total, month, day


def _within(period: ColumnElement[bool] | None, column: ColumnElement[int]) -> ColumnElement[int]:
    return column if period is None else case((period, column), else_=literal(0))
