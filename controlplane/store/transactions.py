"""The transaction that changes configuration: it cannot forget the revision, the tombstones or the audit row."""

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import event, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.fleet_tables import RevocationRow
from controlplane.store.repositories import Repositories
from controlplane.store.row_changes import RowChanges
from controlplane.store.row_versions import end_of, version_of
from controlplane.store.tables import AuditEntry, ConfigurationRow, RevisionCounter, Tombstone

COUNTER_ID: Final = 1
NOTIFY_CHANNEL: Final = "tollkeeper_revision"
"""PostgreSQL announces each committed revision on this channel, for other control planes."""


class Transaction(Repositories):
    """A running change of the configuration, made by `Store.transaction`.

    `revision` is known after `seal` (or the end of the block); `now` is one instant for the whole transaction.
    """

    def __init__(self, session: AsyncSession, *, actor: str, rpc_name: str, now: datetime) -> None:
        super().__init__(session)
        self.actor = actor
        self.rpc_name = rpc_name
        self.now = now
        self.committed_revision: int | None = None
        """The new revision, once it is committed; None when nothing changed or nothing was kept."""
        self.effects: list[Callable[[], Awaitable[object]]] = []
        self._revision: int | None = None
        self._resource = ""
        self._request: dict[str, Any] = {}  # Any: JSON
        self._discarded = False
        self._sealed = False
        self._changed: dict[int, ConfigurationRow] = {}
        self._deleted: dict[int, ConfigurationRow] = {}
        self._revocations: dict[tuple[int, str], RevocationRow] = {}
        self._row_changes = RowChanges()
        event.listen(session.sync_session, "before_flush", self._note_changes)

    @property
    def revision(self) -> int:
        """The revision of this change; when nothing changed, the newest one there was.

        Raises:
            RuntimeError: The transaction is not sealed yet.
        """
        if self._revision is None:
            raise RuntimeError("the revision is known when the transaction is sealed")
        return self._revision

    def describe(self, resource: str, request: dict[str, Any]) -> None:
        """Say what the audit row shows: the resource's name and the request, without secrets."""
        self._resource = resource
        self._request = request

    def add(self, row: ConfigurationRow) -> None:
        """Insert `row`."""
        self.session.add(row)

    def touch(self, row: ConfigurationRow) -> None:
        """Stamp `row` although none of its columns changed: what travels as this resource holds more than the row."""
        self._changed[id(row)] = row

    async def delete(self, row: ConfigurationRow) -> None:
        """Delete `row` and leave a tombstone."""
        await self.session.delete(row)

    def revoke(
        self,
        kind: int,
        subject_id: str,
        *,
        organization_id: str = "",
        terminate_streams: bool = False,
    ) -> None:
        """Have it kept with this change that something is out of service for good; see `RevocationRow`.

        It counts only where the change takes a revision.
        """
        self._revocations[kind, subject_id] = RevocationRow(
            revision=0,
            kind=kind,
            subject_id=subject_id,
            organization_id=organization_id,
            terminate_streams=terminate_streams,
            at=self.now,
        )

    def discard(self) -> None:
        """Keep nothing: every check is made, also the database's own, and the end of the block rolls back."""
        self._discarded = True

    def after_commit(self, effect: Callable[[], Awaitable[object]]) -> None:
        """Await `effect()` once the change is committed and announced; not at all when nothing was kept."""
        self.effects.append(effect)

    async def seal(self) -> None:
        """Write everything but the commit: afterwards rows carry their revision, and nothing may change any more.

        The counter is the last row that is locked, so revisions are gap-free and in the order of the commits.
        """
        if self._sealed:
            return
        await self.session.flush()
        deleted = list(self._deleted.values())
        changed = [row for key, row in self._changed.items() if key not in self._deleted]
        if self._discarded or not (changed or deleted):
            self._revision = await self._newest_revision()
        else:
            self._revision = await self._next_revision()
            self._stamp(changed, deleted)
            await self.session.flush()
        self._sealed = True

    async def commit(self) -> None:
        """Seal and commit, or roll back what is to be discarded."""
        await self.seal()
        if self._discarded:
            await self.session.rollback()
            return
        await self.session.commit()
        if self._changed or self._deleted:
            self.committed_revision = self.revision

    def _note_changes(self, session: Any, _context: Any, _instances: Any) -> None:
        """Remember what a flush is about to write. Any: the event's own types."""
        new = self._configuration(session.new)
        dirty = [row for row in self._configuration(session.dirty) if session.is_modified(row)]
        deleted = self._configuration(session.deleted)
        if self._sealed and (new or dirty or deleted):
            raise RuntimeError("a sealed transaction cannot change")
        self._changed |= {id(row): row for row in (*new, *dirty)}
        self._deleted |= {id(row): row for row in deleted}
        self._row_changes.note(new=new, dirty=dirty, deleted=deleted)

    @staticmethod
    def _configuration(rows: Iterable[object]) -> list[ConfigurationRow]:
        return [row for row in rows if isinstance(row, ConfigurationRow)]

    async def _newest_revision(self) -> int:
        found = await self.session.exec(select(col(RevisionCounter.revision)))
        return int(found.one())

    async def _next_revision(self) -> int:
        statement = (
            update(RevisionCounter)
            .where(col(RevisionCounter.id) == COUNTER_ID)
            .values(revision=col(RevisionCounter.revision) + 1)
            .returning(col(RevisionCounter.revision))
        )
        revision = int((await self.session.exec(statement)).scalar_one())
        if self.session.get_bind().dialect.name == "postgresql":
            await self.session.exec(select(func.pg_notify(NOTIFY_CHANNEL, str(revision))))
        return revision

    def _stamp(self, changed: list[ConfigurationRow], deleted: list[ConfigurationRow]) -> None:
        for row in changed:
            row.revision = self.revision
            row.updated_at = self.now
            self.session.add(version_of(row, self.revision, self.now))
        for row in deleted:
            self.session.add(
                Tombstone(kind=row.KIND, id=row.id, revision=self.revision, deleted_at=self.now)
            )
            self.session.add(end_of(row, self.revision, self.now))
        for revocation in self._revocations.values():
            revocation.revision = self.revision
            self.session.add(revocation)
        self.session.add(
            AuditEntry(
                at=self.now,
                actor=self.actor,
                rpc=self.rpc_name,
                resource=self._resource,
                request=self._request,
                revision=self.revision,
                changes=self._row_changes.to_json(),
            )
        )
