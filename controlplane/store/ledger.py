"""The ledger: what every admitted request used and cost, once.

Rows are inserted by request id. A repetition changes nothing, with one exception: a row that
stands as abandoned (its process died, or was cut off for longer than a lease, and it was charged what
was reserved) is replaced when its owner says after all how it ended. The database decides that row by
row, so any number of control planes may be told the same things in any order.

Sums move in the same transaction, by what the rows really did: those that were inserted add
themselves, those that were replaced add the difference. Rows are locked in one order, first of the
ledger, then of users' days, then of subjects' totals, so that no two batches wait for each other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy
from sqlalchemy import ColumnElement, Table, and_, bindparam, case, func, literal, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import defer
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.usage import UsageState
from controlplane.store import usage_totals, user_days
from controlplane.store.tables import UsageRow
from controlplane.store.user_days import Row, UsageTotals

MAX_GROUPS: Final = 10_000

LEDGER: Final[Table] = UsageRow.metadata.tables["usage_ledger"]


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


@dataclass(frozen=True, slots=True)
class UserUsage:
    """What a user used: since always, in a month, on a day, and lately."""

    total: UsageTotals
    month: UsageTotals
    day: UsageTotals
    lately: UsageTotals


async def record(session: AsyncSession, rows: Sequence[Row]) -> None:
    """Insert `rows`, which hold a value for every column of the ledger, and count them in all sums.

    `session` comes from `Store.ledger()`; all of it is one commit.
    """
    if not rows:
        return
    connection = await session.connection()
    inserted, repeated = await _insert_new(connection, rows)
    before, after = await _replace_abandoned(connection, repeated)
    added = [row for row in (*inserted, *after) if row["state"] != UsageState.RELEASED]
    await user_days.move(connection, added=added, taken=before)
    await usage_totals.move(connection, added=added, taken=before)


async def _insert_new(
    connection: AsyncConnection, rows: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """Insert the first row of each request that the ledger does not have; return these, and all others."""
    firsts: dict[str, int] = {}
    for index, row in enumerate(rows):
        firsts.setdefault(row["request_id"], index)
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(LEDGER).on_conflict_do_nothing().returning(LEDGER.c.request_id)
    ordered = [dict(rows[firsts[request_id]]) for request_id in sorted(firsts)]
    found = (await connection.execute(statement, ordered)).scalars()
    new = {firsts[request_id] for request_id in found}
    inserted = [row for index, row in enumerate(rows) if index in new]
    return inserted, [row for index, row in enumerate(rows) if index not in new]


async def _replace_abandoned(
    connection: AsyncConnection, rows: Sequence[Row]
) -> tuple[list[Row], list[Row]]:
    """Replace what stands as abandoned by the first of `rows` that knows better; return what was and what is."""
    better: dict[str, Row] = {}
    for row in rows:
        if row["state"] != UsageState.ABANDONED:
            better.setdefault(row["request_id"], row)
    if not better:
        return [], []
    columns = dict.fromkeys(
        (
            "request_id",
            "user_id",
            "usage_day",
            *user_days.AMOUNTS.values(),
            *usage_totals.LEDGER_COLUMNS,
        )
    )
    # What is found is locked: nobody else can replace it any more, and a commit that is awaited is seen.
    statement = (
        sqlalchemy.select(*(LEDGER.c[name] for name in columns))
        .where(LEDGER.c.request_id.in_(better), LEDGER.c.state == int(UsageState.ABANDONED))
        .order_by(LEDGER.c.request_id)
        .with_for_update()
    )
    before: list[Row] = [row._asdict() for row in await connection.execute(statement)]
    after = [better[row["request_id"]] for row in before]
    if after:
        update = LEDGER.update().where(LEDGER.c.request_id == bindparam("replaced"))
        await connection.execute(update, [{**row, "replaced": row["request_id"]} for row in after])
    return before, after


async def user_usage(
    session: AsyncSession, user_id: str, *, usage_day: str, usage_month: str, since: datetime
) -> UserUsage:
    """Return what a user used; `lately` counts what began at `since` or later.

    Released requests count nowhere. A user that nobody knows used nothing.
    """
    total, month, day = await user_days.sums_of(session, user_id, usage_day, usage_month)
    columns = (LEDGER.c[name] for name in user_days.AMOUNTS.values())
    statement = sqlalchemy.select(
        func.count(), *(func.coalesce(func.sum(column), 0) for column in columns)
    ).where(
        LEDGER.c.user_id == user_id,
        LEDGER.c.started_at >= since,
        LEDGER.c.state != int(UsageState.RELEASED),
    )
    found = (await (await session.connection()).execute(statement)).one()
    return UserUsage(total, month, day, UsageTotals(*(int(value) for value in found)))


async def find_requests(session: AsyncSession, request_ids: Collection[str]) -> set[str]:
    """Return which of these requests the ledger has, in whatever state."""
    statement = select(UsageRow.request_id).where(col(UsageRow.request_id).in_(request_ids))
    return set((await session.exec(statement)).all())


async def list_requests(
    session: AsyncSession,
    chosen: RequestFilter,
    *,
    limit: int,
    after: PagePosition | None,
    with_layers: bool = True,
) -> list[UsageRow]:
    """Return at most `limit` requests, newest first, that come after `after` in this order.

    Without `with_layers` the layers are not read, and the rows must not be asked for them: they are most of a row.
    """
    statement = (
        select(UsageRow)
        .where(*_conditions(chosen))
        .order_by(col(UsageRow.started_at).desc(), col(UsageRow.request_id).desc())
        .limit(limit)
    )
    if not with_layers:
        statement = statement.options(defer(UsageRow.layers, raiseload=True))  # type: ignore[arg-type]  # a column of the table
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
