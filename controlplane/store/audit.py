"""The audit log, read back. It is written by the transaction of each change, and nothing alters it.

Acts that change no configuration leave a row of their own.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.tables import AuditEntry
from controlplane.store.transactions import Transaction


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries; what is empty does not choose. `since` is inclusive, `until` is not."""

    resource: str = ""
    actor: str = ""
    rpc: str = ""
    since: datetime | None = None
    until: datetime | None = None


async def note_act(tx: Transaction, resource: str, request: dict[str, Any]) -> None:
    """Keep that somebody does what changes no configuration; it carries the newest revision and takes none.

    Args:
        tx: Changes no configuration.
        resource: What it is about.
        request: The request as JSON, without secrets.
    """
    await tx.seal()
    entry = AuditEntry(
        at=tx.now,
        actor=tx.actor,
        rpc=tx.rpc_name,
        resource=resource,
        request=request,
        revision=tx.revision,
        changes=[],
    )
    tx.session.add(entry)


async def list_entries(
    session: AsyncSession, chosen: AuditFilter, *, limit: int, below_id: int | None
) -> list[AuditEntry]:
    """Return at most `limit` entries, newest first, with an id below `below_id` (None: from the newest on)."""
    entry_id = col(AuditEntry.id)
    statement = (
        select(AuditEntry).where(*_conditions(chosen)).order_by(entry_id.desc()).limit(limit)
    )
    if below_id is not None:
        statement = statement.where(entry_id < below_id)
    return list((await session.exec(statement)).all())


def _conditions(chosen: AuditFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (col(AuditEntry.resource), chosen.resource),
            (col(AuditEntry.actor), chosen.actor),
            (col(AuditEntry.rpc), chosen.rpc),
        )
        if value
    ]
    if chosen.since is not None:
        conditions.append(col(AuditEntry.at) >= chosen.since)
    if chosen.until is not None:
        conditions.append(col(AuditEntry.at) < chosen.until)
    return conditions
