"""What changed since a revision: the raw material of a transfer."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.kinds import Kind
from controlplane.store.tables import CONFIGURATION, ConfigurationRow, RevisionCounter, Tombstone


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
    """Every kind has a list, by id."""
    tombstones: list[Tombstone]
    """By revision. An id that exists again is in `rows` only."""


async def changes_since(session: AsyncSession, revision: int) -> Changes:
    """Return what changed after `revision`; 0 asks for everything there is.

    `session` comes from `Store.reading()`, so that all of the answer is one state.
    """
    counter = (await session.exec(select(RevisionCounter))).one()
    rows: dict[Kind, list[ConfigurationRow]] = {}
    for table in CONFIGURATION:
        statement = select(table).where(col(table.revision) > revision).order_by(col(table.id))
        rows[table.KIND] = list((await session.exec(statement)).all())
    return Changes(
        config_epoch=counter.config_epoch,
        revision=counter.revision,
        is_complete=revision == 0 or revision >= counter.compacted_revision,
        rows=rows,
        tombstones=_still_gone(await _tombstones_since(session, revision), rows),
    )


async def _tombstones_since(session: AsyncSession, revision: int) -> Sequence[Tombstone]:
    statement = (
        select(Tombstone)
        .where(col(Tombstone.revision) > revision)
        .order_by(col(Tombstone.revision), col(Tombstone.kind), col(Tombstone.id))
    )
    return (await session.exec(statement)).all()


def _still_gone(
    tombstones: Sequence[Tombstone], rows: dict[Kind, list[ConfigurationRow]]
) -> list[Tombstone]:
    # A row that was made again has a revision above its tombstone's, so it is among the changed rows.
    existing = {(kind, row.id) for kind, found in rows.items() for row in found}
    return [stone for stone in tombstones if (stone.kind, stone.id) not in existing]
