"""A return to a former revision, within a transaction.

Rows go back in an order that no constraint objects to: what is made anew first, owners before what they own; then what
changed; then what is to go, in the opposite order. A name that is taken by a row that will go is taken from it before.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import LargeBinary, inspect
from sqlmodel import col, select

from controlplane.domain.kinds import Kind
from controlplane.domain.rollback import UNTOUCHED, Restored, Skipped, differs, restored
from controlplane.store.columns import UtcDateTime
from controlplane.store.history import Difference, History, RowKey
from controlplane.store.tables import (
    CONFIGURATION,
    ConfigurationRow,
    Credential,
    Provider,
    Router,
    Rule,
)
from controlplane.store.transactions import Transaction

_TABLES: Final = {table.KIND: table for table in CONFIGURATION}

# Owners before what they own.
_ORDER: Final = (
    Kind.SERVICE,
    Kind.TIER,
    Kind.ORGANIZATION,
    Kind.USER,
    Kind.PROVIDER,
    Kind.CREDENTIAL,
    Kind.ROUTER,
    Kind.RULE,
    Kind.API_KEY,
    Kind.DEVICE,
    Kind.PRICE,
    Kind.SUBJECT_LIMITS,
)
_LEAVES: Final = frozenset({Kind.SUBJECT_LIMITS, Kind.PRICE})
_CHUNK: Final = 500

# Limits of somebody who does not come back say nothing: by `common.v1.SubjectKind`.
_LIMITED_KINDS: Final = {4: Kind.API_KEY, 5: Kind.DEVICE}
_MAX_PARTED_NAME: Final = 60


@dataclass(slots=True)
class Rollback:
    """What a return did: `changes` from what was to what is, rows that were deleted, and what stays as it is."""

    changes: list[Difference] = field(default_factory=list)
    deleted: list[ConfigurationRow] = field(default_factory=list)
    skipped: list[tuple[RowKey, str]] = field(default_factory=list)


async def roll_back(tx: Transaction, revision: int) -> Rollback:
    """Make the configuration what it was at `revision`, but for what `domain.rollback` keeps.

    Raises:
        NotFoundError: That revision is not kept.
        sqlalchemy.exc.IntegrityError: What is left does not fit together.
    """
    history = History(tx.session)
    await history.check(revision)
    _, newest = await history.bounds()
    differences = await history.differences(newest, revision)
    differences = [each for each in differences if each.key[0] not in UNTOUCHED]
    rows = await _present_rows(tx, [each.key for each in differences])
    plan = _Plan(tx)
    for difference in differences:
        plan.add(difference, rows.get(difference.key))
    await plan.carry_out()
    return plan.done


async def _present_rows(tx: Transaction, keys: list[RowKey]) -> dict[RowKey, ConfigurationRow]:
    found: dict[RowKey, ConfigurationRow] = {}
    for kind, of_kind in groupby(sorted(keys), key=itemgetter(0)):
        table, ids = _TABLES[kind], [row_id for _, row_id in of_kind]
        for start in range(0, len(ids), _CHUNK):
            statement = select(table).where(col(table.id).in_(ids[start : start + _CHUNK]))
            for row in (await tx.session.exec(statement)).all():
                found[kind, row.id] = row
    return found


class _Plan:
    """Rows by what is to be done with them."""

    def __init__(self, tx: Transaction) -> None:
        self.done = Rollback()
        self._tx = tx
        self._new: list[ConfigurationRow] = []
        self._changed: list[tuple[ConfigurationRow, dict[str, Any]]] = []  # Any: columns
        self._gone: list[ConfigurationRow] = []
        self._not_back: set[RowKey] = set()
        self._limits: list[Difference] = []

    def add(self, difference: Difference, row: ConfigurationRow | None) -> None:
        """Decide what happens to `row`, None where there is none now. Limits wait until it is known who comes back."""
        kind, _ = difference.key
        if kind is Kind.SUBJECT_LIMITS and difference.before is None:
            self._limits.append(difference)
            return
        if difference.after is None:
            if row is not None:
                self._gone.append(row)
                self.done.changes.append(difference)
            return
        answer = restored(kind, difference.after, difference.before)
        if isinstance(answer, Skipped):
            self._not_back.add(difference.key)
            self.done.skipped.append((difference.key, answer.why))
            return
        self._put(difference, answer, row)

    def _put(self, difference: Difference, answer: Restored, row: ConfigurationRow | None) -> None:
        if answer.note:
            self.done.skipped.append((difference.key, answer.note))
        if not differs(difference.before, answer.columns):
            return
        table = _TABLES[difference.key[0]]
        columns = _python_values(table, answer.columns)
        if row is None:
            self._new.append(table(**columns))
        else:
            self._changed.append((row, columns))
        self.done.changes.append(Difference(difference.key, difference.before, answer.columns))

    async def carry_out(self) -> None:
        """Write everything, each step before the next."""
        for difference in self._limits:
            self._add_limits(difference)
        session = self._tx.session
        # Nobody refers to them, and who comes back may be called as one of them is.
        await self._delete(row for row in self._gone if row.KIND in _LEAVES)
        self._part_with_names()
        await session.flush()
        for _, rows in groupby(_in_order(self._new), key=_kind_of):
            session.add_all(rows)
            await session.flush()
        for row, columns in self._changed:
            for name, value in columns.items():
                if name not in ("id", "revision", "updated_at") and getattr(row, name) != value:
                    setattr(row, name, value)
        await session.flush()
        await self._touch_wholes()
        await self._delete(row for row in self._gone if row.KIND not in _LEAVES)
        self.done.deleted = self._gone

    async def _delete(self, gone: Iterable[ConfigurationRow]) -> None:
        for _, rows in groupby(reversed(_in_order(gone)), key=_kind_of):
            for row in rows:
                await self._tx.delete(row)
            await self._tx.session.flush()

    def _add_limits(self, difference: Difference) -> None:
        then = difference.after or {}
        owner = _LIMITED_KINDS.get(then["subject_kind"])
        if owner is not None and (owner, then["subject_id"]) in self._not_back:
            self.done.skipped.append((difference.key, "its subject does not come back"))
            return
        self._put(difference, Restored(then), None)

    def _part_with_names(self) -> None:
        """Take names from rows that will go, where a row that comes back has the same."""
        wanted = {(row.KIND, getattr(row, "name", "")) for row in self._new}
        for row in self._gone:
            name = getattr(row, "name", "")
            if name and (row.KIND, name) in wanted and row.KIND not in _LEAVES:
                row.name = f"{name[: _MAX_PARTED_NAME - len(row.id)]}~{row.id}"

    async def _touch_wholes(self) -> None:
        """Stamp routers and providers whose parts change: they travel as one."""
        gone = {(row.KIND, row.id) for row in self._gone}
        parts = [*self._new, *(row for row, _ in self._changed), *self._gone]
        wholes: set[tuple[type[ConfigurationRow], str]] = set()
        for part in parts:
            if isinstance(part, Rule):
                wholes.add((Router, part.router_id))
            elif isinstance(part, Credential):
                wholes.add((Provider, part.provider_id))
        for table, row_id in wholes:
            if (table.KIND, row_id) not in gone:
                self._tx.touch(await self._tx.session.get_one(table, row_id))


def _kind_of(row: ConfigurationRow) -> Kind:
    return row.KIND


def _in_order(rows: Iterable[ConfigurationRow]) -> list[ConfigurationRow]:
    return sorted(rows, key=lambda row: (_ORDER.index(row.KIND), row.id))


def _python_values(table: type[ConfigurationRow], columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns as the table holds them. A column that is newer than the version keeps its default."""
    values: dict[str, Any] = {}
    for column in inspect(table).columns:
        if column.name not in columns:
            continue
        value = columns[column.name]
        if value is not None and isinstance(column.type, UtcDateTime):
            value = datetime.fromisoformat(value)
        elif value is not None and isinstance(column.type, LargeBinary):
            value = base64.b64decode(value)
        values[column.name] = value
    return values
