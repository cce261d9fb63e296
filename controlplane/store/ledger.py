"""The ledger: what every admitted request used and cost, once.

Rows are inserted by request id. A repetition changes nothing, with one exception: a row that
stands as abandoned (its process died, and it was charged what was reserved) is replaced by the
settled one when the true figures arrive after all. The database decides that row by row, so any
number of control planes may be told the same things in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, and_, case, func, literal, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.tables import UsageRow

MAX_GROUPS: Final = 10_000

LEDGER: Final[Table] = UsageRow.metadata.tables["usage_ledger"]


class UsageState(IntEnum):
    """How a request ended; the numbers are those of the contract's enum."""

    SETTLED = 1
    RELEASED = 2
    ABANDONED = 3


class UsageGroup(StrEnum):
    """What sums are grouped by: the column of that name."""

    MODEL = "model"
    USER = "user"
    KEY = "key"
    DEVICE = "device_id"
    ORGANIZATION = "organization"
    DAY = "usage_day"


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests; what is empty does not choose. `since` is inclusive, `until` is not."""

    organization: str = ""
    user: str = ""
    key: str = ""
    model: str = ""
    since: datetime | None = None
    until: datetime | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class PagePosition:
    """The last request of a page; the next page begins with the one that is older."""

    started_at: datetime
    request_id: str


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sum of one group."""

    group: str
    requests: int
    input_total_tokens: int
    cache_read_tokens: int
    output_tokens: int
    cost_nanousd: int
    charged_nanousd: int


async def record(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert `rows`, which hold a value for every column of the ledger.

    `session` comes from `Store.ledger()`; all of it is one commit.
    """
    # In one order everywhere, so that two batches with the same rows cannot wait for each other.
    ordered = sorted(rows, key=lambda row: str(row["request_id"]))
    if not ordered:
        return
    connection = await session.connection()
    insert = _insert_once(connection.dialect.name)
    await connection.execute(insert, [dict(row) for row in ordered])


def _insert_once(dialect_name: str) -> Any:  # Any: the two dialects share no type of Insert
    insert: Any = postgresql.insert if dialect_name == "postgresql" else sqlite.insert
    statement = insert(LEDGER)
    settled, abandoned = int(UsageState.SETTLED), int(UsageState.ABANDONED)
    return statement.on_conflict_do_update(
        index_elements=["request_id"],
        set_={
            column.name: statement.excluded[column.name]
            for column in LEDGER.columns
            if not column.primary_key
        },
        where=and_(LEDGER.c.state == abandoned, statement.excluded.state == settled),
    )


async def list_requests(
    session: AsyncSession, chosen: RequestFilter, *, limit: int, after: PagePosition | None
) -> list[UsageRow]:
    """Return at most `limit` requests, newest first, that come after `after` in this order."""
    statement = (
        select(UsageRow)
        .where(*_conditions(chosen))
        .order_by(col(UsageRow.started_at).desc(), col(UsageRow.request_id).desc())
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(
            or_(
                col(UsageRow.started_at) < after.started_at,
                and_(
                    col(UsageRow.started_at) == after.started_at,
                    col(UsageRow.request_id) < after.request_id,
                ),
            )
        )
    return list((await session.exec(statement)).all())


async def sum_requests(
    session: AsyncSession, chosen: RequestFilter, group_by: UsageGroup | None
) -> list[UsageSum]:
    """Return sums by group, the most expensive first, at most `MAX_GROUPS`.

    Without a group there is exactly one sum. Released requests count nowhere: they used nothing.
    """
    group: ColumnElement[Any] = literal("") if group_by is None else LEDGER.c[group_by.value]
    totals = [
        func.coalesce(func.sum(LEDGER.c[name]), 0).label(name)
        for name in (
            "input_total_tokens",
            "cache_read_tokens",
            "output_tokens",
            "cost_nanousd",
            "charged_nanousd",
        )
    ]
    counted = case((LEDGER.c.state == int(UsageState.RELEASED), 0), else_=1)
    statement = select(group, func.coalesce(func.sum(counted), 0), *totals).where(
        *_conditions(chosen)
    )
    if group_by is not None:
        statement = (
            statement.where(LEDGER.c.state != int(UsageState.RELEASED))
            .group_by(group)
            .order_by(func.sum(LEDGER.c.cost_nanousd).desc(), group)
            .limit(MAX_GROUPS)
        )
    found = (await session.exec(statement)).all()
    # PostgreSQL sums bigint into numeric, which arrives as Decimal.
    return [UsageSum(str(name), *(int(value) for value in sums)) for name, *sums in found]


def _conditions(chosen: RequestFilter) -> list[ColumnElement[bool]]:
    conditions = [
        LEDGER.c[name] == value
        for name, value in (
            ("organization", chosen.organization),
            ("user", chosen.user),
            ("key", chosen.key),
            ("model", chosen.model),
            ("request_id", chosen.request_id),
        )
        if value
    ]
    if chosen.since is not None:
        conditions.append(LEDGER.c.started_at >= chosen.since)
    if chosen.until is not None:
        conditions.append(LEDGER.c.started_at < chosen.until)
    return conditions
