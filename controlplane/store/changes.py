"""What changed since a revision, or everything: the raw material of transfers."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, func, inspect, literal, true, union_all
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.kinds import Kind
from controlplane.store.fleet_tables import RevocationRow
from controlplane.store.tables import (
    CONFIGURATION,
    ApiKey,
    ConfigurationRow,
    Device,
    Price,
    RevisionCounter,
    SubjectLimits,
    Tombstone,
    User,
)

# The newest of a week. Whoever missed more of them gets them with the configuration itself.
MAX_REVOCATIONS: Final = 5_000

# Each page is a way to the driver's thread and back; who takes it in divides it up once more.
PAGE_ROWS: Final = 1_000

_MANY: Final[tuple[type[ConfigurationRow], ...]] = (User, ApiKey, Device, SubjectLimits, Price)

# Nothing of them travels, and instants are slow to read.
_NOT_READ: Final = frozenset({"created_at", "updated_at"})


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows with a revision above the one asked for, and what was deleted since, in one committed state.

    A router's row changes with any of its rules, a provider's with any of its credentials; the rules and credentials
    that did not change are not here.
    """

    config_epoch: str
    revision: int
    """The newest revision in this state."""
    is_complete: bool
    """False when deletions this far back are forgotten: only everything (revision 0) can be told."""
    rows: dict[Kind, list[ConfigurationRow]]
    """Every kind has a list. Of kinds with many rows they only read like rows of their table, and have no `created_at` and
    no `updated_at`; the kind says which table that is."""
    tombstones: list[Tombstone]
    """By revision. An id that exists again is in `rows` only."""
    former_epochs: frozenset[str] = frozenset()
    """Those of this database before it was restored."""
    compacted_revision: int = 0
    """Deletions up to it are forgotten."""
    revocations: list[RevocationRow] = field(default_factory=list)
    """What is out of service for good, by revision; the newest `MAX_REVOCATIONS` of those that are kept."""


async def changes_since(session: AsyncSession, revision: int) -> Changes:
    """Return what changed after `revision`; 0 asks for everything there is.

    `session` comes from `Store.reading()`, so that all of the answer is one state.
    """
    counter = (await session.exec(select(RevisionCounter))).one()
    is_complete = revision == 0 or revision >= counter.compacted_revision
    changes = _nothing(counter, is_complete=is_complete)
    changed = await _changed_kinds(session, revision)
    for table in CONFIGURATION:
        if table.KIND not in changed:
            continue
        found = changes.rows[table.KIND]
        if table in _MANY:
            async for rows in _pages(session, table, col(table.revision) > revision):
                found.extend(rows)
        else:
            statement = select(table).where(col(table.revision) > revision)
            found.extend((await session.exec(statement)).all())
    changes.tombstones.extend(_still_gone(await _tombstones_since(session, revision), changes.rows))
    changes.revocations.extend(await _revocations_since(session, revision))
    return changes


async def everything(session: AsyncSession) -> AsyncIterator[Changes]:
    """Yield everything there is, in parts that are read when they are asked for.

    The first part holds what has few rows, what others are composed of, the revocations, and all tombstones: also those
    of ids that exist again. `session` comes from `Store.reading()`, so that all parts are one state.
    """
    counter = (await session.exec(select(RevisionCounter))).one()
    first = _nothing(counter, is_complete=True)
    for table in CONFIGURATION:
        if table not in _MANY:
            first.rows[table.KIND].extend((await session.exec(select(table))).all())
    first.revocations.extend(await _revocations_since(session, 0))
    first.tombstones.extend(await _tombstones_since(session, 0))
    yield first
    for table in _MANY:
        async for rows in _pages(session, table, true()):
            part = _nothing(counter, is_complete=True)
            part.rows[table.KIND].extend(rows)
            yield part


def _nothing(counter: RevisionCounter, *, is_complete: bool) -> Changes:
    return Changes(
        config_epoch=counter.config_epoch,
        revision=counter.revision,
        is_complete=is_complete,
        rows={table.KIND: [] for table in CONFIGURATION},
        tombstones=[],
        former_epochs=frozenset(counter.former_epochs),
        compacted_revision=counter.compacted_revision,
    )


async def _changed_kinds(session: AsyncSession, revision: int) -> set[Kind]:
    """Return the kinds of which a row changed: one question instead of one for each table."""
    newest = union_all(
        *(
            select(
                literal(str(table.KIND)).label("kind"), func.max(col(table.revision)).label("at")
            )
            for table in CONFIGURATION
        )
    ).subquery()
    statement = select(newest.c.kind).where(newest.c.at > revision)
    return {Kind(kind) for kind in (await session.exec(statement)).all()}


async def _pages(
    session: AsyncSession, table: type[ConfigurationRow], which: ColumnElement[bool]
) -> AsyncIterator[Sequence[ConfigurationRow]]:
    """Yield rows as plain tuples with names: instances would cost more than all that is made of them."""
    columns: list[ColumnElement[Any]] = [  # Any: values of every type
        column for column in inspect(table).columns if column.name not in _NOT_READ
    ]
    connection = await session.connection()
    found = await connection.stream(
        select_columns(*columns).where(which), execution_options={"yield_per": PAGE_ROWS}
    )
    async for rows in found.partitions():
        # They have the attributes of the table's rows, which is all that is asked of them.
        yield cast(Sequence[ConfigurationRow], rows)


async def _tombstones_since(session: AsyncSession, revision: int) -> Sequence[Tombstone]:
    statement = (
        select(Tombstone)
        .where(col(Tombstone.revision) > revision)
        .order_by(col(Tombstone.revision), col(Tombstone.kind), col(Tombstone.id))
    )
    return (await session.exec(statement)).all()


async def _revocations_since(session: AsyncSession, revision: int) -> list[RevocationRow]:
    statement = (
        select(RevocationRow)
        .where(col(RevocationRow.revision) > revision)
        .order_by(
            col(RevocationRow.revision).desc(),
            col(RevocationRow.kind),
            col(RevocationRow.subject_id),
        )
        .limit(MAX_REVOCATIONS)
    )
    return list(reversed((await session.exec(statement)).all()))


def _still_gone(
    tombstones: Sequence[Tombstone], rows: dict[Kind, list[ConfigurationRow]]
) -> list[Tombstone]:
    # A row that was made again has a revision above its tombstone's, so it is among the changed rows.
    existing = {(kind, row.id) for kind, found in rows.items() for row in found}
    return [stone for stone in tombstones if (stone.kind, stone.id) not in existing]
