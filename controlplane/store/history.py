"""Former revisions of the configuration, read back from the versions of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import NotFoundError
from controlplane.domain.kinds import Kind
from controlplane.domain.rollback import differs
from controlplane.store.fleet_tables import RowVersion
from controlplane.store.tables import AuditEntry, RevisionCounter

RowKey = tuple[Kind, str]
Columns = dict[str, Any]  # Any: JSON

# Versions of one call's rows: far above any difference that a person reads.
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class RevisionEntry:
    """What one revision did, and who made it."""

    revision: int
    at: datetime
    changed_rows: int
    actor: str
    rpc: str
    resource: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not the same: None stands for no such row."""

    key: RowKey
    before: Columns | None
    after: Columns | None


class History:
    """Former revisions, within one session of `Store.reading()` or a transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def bounds(self) -> tuple[int, int]:
        """Return the oldest revision that is kept, and the newest."""
        counter = (await self._session.exec(select(RevisionCounter))).one()
        return counter.history_from_revision, counter.revision

    async def check(self, revision: int) -> None:
        """Check that a revision can be told.

        Raises:
            NotFoundError: It is not kept any more, or is not there yet.
        """
        oldest, newest = await self.bounds()
        if not oldest <= revision <= newest:
            raise NotFoundError(
                f"revision {revision} cannot be told: those from {oldest} to {newest} are kept",
                field="revision",
            )

    async def page(self, *, below: int | None, limit: int) -> list[RevisionEntry]:
        """Return at most `limit` revisions, newest first, below a revision (None: from the newest on)."""
        revision = col(RowVersion.revision)
        oldest, _ = await self.bounds()
        statement = (
            select(revision, func.max(RowVersion.at), func.count())
            # The content of some older ones is kept on, because later ones hold it still.
            .where(revision >= oldest)
            .group_by(revision)
            .order_by(revision.desc())
            .limit(limit)
        )
        if below is not None:
            statement = statement.where(revision < below)
        found = (await self._session.exec(statement)).all()
        audit = await self._audit([number for number, _, _ in found])
        return [
            RevisionEntry(number, at, count, *_author(audit.get(number)))
            for number, at, count in found
        ]

    async def differences(self, start: int, end: int) -> list[Difference]:
        """Return the rows that differ between two revisions, by kind and id; `start` may be above `end`."""
        low, high = sorted((start, end))
        keys = await self._changed(low, high)
        at_low, at_high = await self._states(keys, low), await self._states(keys, high)
        before, after = (at_low, at_high) if start <= end else (at_high, at_low)
        return [
            Difference(key, before.get(key), after.get(key))
            for key in keys
            if differs(before.get(key), after.get(key))
        ]

    async def _changed(self, low: int, high: int) -> list[RowKey]:
        statement = (
            select(RowVersion.kind, RowVersion.id)
            .where(col(RowVersion.revision) > low, col(RowVersion.revision) <= high)
            .distinct()
            .order_by(RowVersion.kind, RowVersion.id)
        )
        return [
            (Kind(kind), row_id) for kind, row_id in (await self._session.exec(statement)).all()
        ]

    async def _states(self, keys: list[RowKey], revision: int) -> Mapping[RowKey, Columns]:
        """Return what rows were at a revision; those that were not there are missing."""
        found: dict[RowKey, Columns] = {}
        by_kind: dict[Kind, list[str]] = {}
        for kind, row_id in keys:
            by_kind.setdefault(kind, []).append(row_id)
        for kind, ids in by_kind.items():
            for start in range(0, len(ids), _CHUNK):
                for version in await self._newest(kind, ids[start : start + _CHUNK], revision):
                    if version.columns is not None:
                        found[kind, version.id] = version.columns
        return found

    async def _newest(self, kind: Kind, ids: list[str], revision: int) -> list[RowVersion]:
        newest = (
            select(
                col(RowVersion.kind).label("kind"),
                col(RowVersion.id).label("id"),
                func.max(RowVersion.revision).label("revision"),
            )
            .where(
                col(RowVersion.kind) == kind,
                col(RowVersion.id).in_(ids),
                col(RowVersion.revision) <= revision,
            )
            .group_by(col(RowVersion.kind), col(RowVersion.id))
            .subquery()
        )
        statement = select(RowVersion).join(
            newest,
            (col(RowVersion.kind) == newest.c.kind)
            & (col(RowVersion.id) == newest.c.id)
            & (col(RowVersion.revision) == newest.c.revision),
        )
        return list((await self._session.exec(statement)).all())

    async def _audit(self, revisions: list[int]) -> dict[int, AuditEntry]:
        """Return who made revisions: the first entry of each, later ones are of acts that changed nothing."""
        statement = (
            select(AuditEntry)
            .where(col(AuditEntry.revision).in_(revisions))
            .order_by(col(AuditEntry.id).desc())
        )
        return {entry.revision: entry for entry in (await self._session.exec(statement)).all()}


def _author(entry: AuditEntry | None) -> tuple[str, str, str]:
    return (entry.actor, entry.rpc, entry.resource) if entry else ("", "", "")
