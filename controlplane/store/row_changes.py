"""What a transaction does to rows of the configuration, as the audit log keeps it: before and after, column by column.

A row may be written several times before the commit: before is what it held first, after what it holds last. Columns
of bytes hold secrets and digests; of them it is said that they changed, and nothing else.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import LargeBinary, inspect
from sqlalchemy.orm import InstanceState

from controlplane.store.tables import CONFIGURATION, ConfigurationRow

MAX_ROWS: Final = 50
MAX_ENTRY_BYTES: Final = 65_536
"""Size of all rows of an entry as JSON; rows that do not fit are left out."""
MAX_VALUE_BYTES: Final = 4_096
"""Size of one column's value as JSON; in place of a larger one stands `TOO_LARGE`."""

TOO_LARGE: Final = "(too large to show)"
CHANGED: Final = "changed"

Json = dict[str, Any]  # Any: JSON

# What every change changes says nothing.
_NOISE: Final = frozenset({"id", "revision", "created_at", "updated_at"})
# Owners come before what they own, so that they are among the rows that are kept.
_RANKS: Final = {table: rank for rank, table in enumerate(CONFIGURATION)}


@dataclass(slots=True)
class _Trace:
    """What is known of one row: the columns of `before` are those that were written."""

    row: ConfigurationRow
    is_new: bool = False
    is_gone: bool = False
    before: Json = field(default_factory=dict)


class RowChanges:
    """The rows that one transaction wrote. It is told of each flush before it happens."""

    def __init__(self) -> None:
        self._traces: dict[int, _Trace] = {}

    def note(
        self,
        *,
        new: Iterable[ConfigurationRow],
        dirty: Iterable[ConfigurationRow],
        deleted: Iterable[ConfigurationRow],
    ) -> None:
        """Remember what a flush is about to write."""
        for row in new:
            self._trace(row).is_new = True
        for row in dirty:
            self._remember(self._trace(row), inspect(row))
        for row in deleted:
            trace = self._trace(row)
            trace.is_gone = True
            state = inspect(row)
            self._remember(trace, state)
            for name in _columns(type(row)):
                if name in state.dict:
                    trace.before.setdefault(name, state.dict[name])

    def to_json(self) -> list[Json]:
        """Return what `AuditEntry.changes` holds: at most `MAX_ROWS` rows, owners first."""
        kept: list[Json] = []
        size = 0
        for change in self._changes():
            size += len(json.dumps(change).encode())
            if len(kept) == MAX_ROWS or size > MAX_ENTRY_BYTES:
                break
            kept.append(change)
        return kept

    def _trace(self, row: ConfigurationRow) -> _Trace:
        # The trace holds the row, so its identity is not used for another one meanwhile.
        return self._traces.setdefault(id(row), _Trace(row))

    @staticmethod
    def _remember(trace: _Trace, state: InstanceState[ConfigurationRow]) -> None:
        if not state.modified:
            return
        for name in _columns(type(trace.row)):
            history = state.attrs[name].history
            if history.has_changes() and history.deleted:
                trace.before.setdefault(name, history.deleted[0])

    def _changes(self) -> Iterator[Json]:
        traces = sorted(
            self._traces.values(), key=lambda each: (_RANKS[type(each.row)], each.row.id)
        )
        for trace in traces:
            before, after = _difference(trace)
            if before or after:
                yield {
                    "kind": trace.row.KIND.value,
                    "id": trace.row.id,
                    "before": before,
                    "after": after,
                }


def _difference(trace: _Trace) -> tuple[Json | None, Json | None]:
    """Return what the columns of a row held and hold; nothing at all when it is as it was."""
    columns = _columns(type(trace.row))
    now: Json = inspect(trace.row).dict
    if trace.is_new and trace.is_gone:
        return None, None
    if trace.is_new:
        return None, {name: _shown(now.get(name)) for name, is_open in columns.items() if is_open}
    if trace.is_gone:
        before = trace.before
        return {
            name: _shown(before.get(name)) for name, is_open in columns.items() if is_open
        }, None
    written = [
        name for name in columns if name in trace.before and trace.before[name] != now.get(name)
    ]
    return (
        {name: _shown(trace.before[name]) for name in written if columns[name]},
        {name: _shown(now.get(name)) if columns[name] else CHANGED for name in written},
    )


@cache
def _columns(table: type[ConfigurationRow]) -> dict[str, bool]:
    """Return the columns that matter, and of each whether its values may be shown."""
    return {
        column.name: not isinstance(column.type, LargeBinary)
        for column in inspect(table).columns
        if column.name not in _NOISE
    }


def _shown(value: Any) -> Any:  # Any: a value of any column, as JSON
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value if len(json.dumps(value)) <= MAX_VALUE_BYTES else TOO_LARGE
