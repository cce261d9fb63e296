"""What the ledger says of counters: the sums that `controlplane.store.usage_totals` keeps, read back."""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.counters import Counter
from controlplane.domain.limits import LimitUnit
from controlplane.domain.names import SubjectKind
from controlplane.store.usage_totals import TOTALS, Sum

# A query with more alternatives is more than SQLite parses.
_GROUPS_AT_ONCE: Final = 100

_Key = tuple[str, int, str, int]


async def amounts_of(session: AsyncSession, counters: Sequence[Counter]) -> list[int]:
    """Return what the ledger says of each counter, in their order; 0 of what nobody used.

    All amounts are of one instant when `session` comes from `Store.reading()`.
    """
    wanted: dict[tuple[int, str], set[str]] = defaultdict(set)
    for counter in counters:
        wanted[int(counter.subject_kind), counter.period_id].add(counter.subject_id)
    groups = [
        and_(
            TOTALS.c.period_id == period_id,
            TOTALS.c.subject_kind == kind,
            TOTALS.c.subject_id.in_(sorted(subject_ids)),
        )
        for (kind, period_id), subject_ids in wanted.items()
    ]
    connection = await session.connection()
    found: dict[_Key, Sum] = {}
    for start in range(0, len(groups), _GROUPS_AT_ONCE):
        chosen = or_(*groups[start : start + _GROUPS_AT_ONCE])
        for row in await connection.execute(_select().where(chosen)):
            found[row[0], row[1], row[2], row[3]] = Sum(*row)
    return [_amount(found.get(_key_of(counter)), counter.unit) for counter in counters]


async def list_sums(
    session: AsyncSession,
    *,
    periods: Mapping[SubjectKind, Collection[str]],
    subjects: Collection[tuple[SubjectKind, str]],
    size: int,
) -> AsyncIterator[Sequence[Sum]]:
    """Yield the sums of subjects in periods, at most `size` at a time, as one query finds them.

    Args:
        session: Of `Store.reading()`: it must stay open until the last one was yielded.
        periods: Which periods matter, by kind of subject.
        subjects: Only these; none means all of them.
        size: At least 1.
    """
    chosen = [
        and_(TOTALS.c.subject_kind == int(kind), TOTALS.c.period_id.in_(sorted(period_ids)), *only)
        for kind, period_ids in periods.items()
        for only in _only(kind, subjects)
    ]
    if not chosen:
        return
    connection = await session.connection()
    statement = _select().where(or_(*chosen))
    options = {"yield_per": size, "max_row_buffer": size}
    async with connection.stream(statement, execution_options=options) as found:
        async for rows in found.partitions():
            yield [Sum(*row) for row in rows]


def _only(
    kind: SubjectKind, subjects: Collection[tuple[SubjectKind, str]]
) -> list[list[ColumnElement[bool]]]:
    """Return what chooses the subjects of a kind: nothing where all of them count, none where none of them does."""
    if not subjects:
        return [[]]
    ids = sorted({subject_id for each, subject_id in subjects if each is kind})
    return [[TOTALS.c.subject_id.in_(ids)]] if ids else []


def _select() -> Any:  # Any: a select of seven columns
    return select(*(TOTALS.c[name] for name in Sum._fields))


def _key_of(counter: Counter) -> _Key:
    kind = int(counter.subject_kind)
    return counter.period_id, kind, counter.subject_id, counter.reset_generation


def _amount(found: Sum | None, unit: LimitUnit) -> int:
    return found.amount_of(unit) if found else 0
