"""When budgets were used to 80 and 100 percent: one event of each per counter, whoever tells of it, in whatever order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Table, and_, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.names import SubjectKind
from controlplane.store.tables import BudgetEventRow

EVENTS: Final[Table] = BudgetEventRow.metadata.tables["budget_events"]

_IDENTITY: Final = ("subject_kind", "subject_id", "period_id", "reset_generation", "percent")


@dataclass(frozen=True, slots=True)
class EventPosition:
    """The last event of a page; the next page begins with the one that is older."""

    reached_at: datetime
    id: int


async def record(session: AsyncSession, events: Sequence[Mapping[str, Any]]) -> None:
    """Keep events that were not told before; of one that was, the first stands.

    Args:
        session: From `Store.ledger()`.
        events: Each holds a value for every column of `BudgetEventRow` but its id.
    """
    firsts: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for event in events:
        firsts.setdefault(tuple(event[name] for name in _IDENTITY), event)
    if not firsts:
        return
    connection = await session.connection()
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    # In one order everywhere, so that two batches cannot wait for each other.
    rows = [dict(firsts[key]) for key in sorted(firsts)]
    await connection.execute(insert(EVENTS).on_conflict_do_nothing(), rows)


async def list_events(
    session: AsyncSession,
    *,
    subject: tuple[SubjectKind, str] | None,
    limit: int,
    after: EventPosition | None,
) -> list[BudgetEventRow]:
    """Return at most `limit` events, newest first, that come after `after` in this order.

    `subject` is a kind and an id; None means all of them.
    """
    reached_at, event_id = col(BudgetEventRow.reached_at), col(BudgetEventRow.id)
    statement = select(BudgetEventRow).order_by(reached_at.desc(), event_id.desc()).limit(limit)
    if subject is not None:
        kind, subject_id = subject
        statement = statement.where(
            BudgetEventRow.subject_kind == int(kind), BudgetEventRow.subject_id == subject_id
        )
    if after is not None:
        is_older = reached_at < after.reached_at
        is_beside = and_(reached_at == after.reached_at, event_id < after.id)
        statement = statement.where(or_(is_older, is_beside))
    return list((await session.exec(statement)).all())
