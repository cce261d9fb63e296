"""A row of the configuration as former revisions keep it: all its columns as JSON."""

import base64
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import inspect

from controlplane.domain.kinds import Kind
from controlplane.store.fleet_tables import RowVersion
from controlplane.store.tables import ConfigurationRow

LEFT_OUT: Final = {Kind.CREDENTIAL: frozenset({"sealed_secret"})}
"""Columns that no version keeps: a rotation must leave nothing of the former secret behind."""


def version_of(row: ConfigurationRow, revision: int, at: datetime) -> RowVersion:
    """Return what `row` is from `revision` on."""
    left_out = LEFT_OUT.get(row.KIND, frozenset())
    columns = {
        name: _json_value(getattr(row, name))
        for name in _columns(type(row))
        if name not in left_out
    }
    return RowVersion(kind=row.KIND, id=row.id, revision=revision, at=at, columns=columns)


def end_of(row: ConfigurationRow, revision: int, at: datetime) -> RowVersion:
    """Return that there is no such row from `revision` on."""
    return RowVersion(kind=row.KIND, id=row.id, revision=revision, at=at, columns=None)


@cache
def _columns(table: type[ConfigurationRow]) -> tuple[str, ...]:
    return tuple(column.name for column in inspect(table).columns)


def _json_value(value: Any) -> Any:  # Any: a value of any column, as JSON
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
