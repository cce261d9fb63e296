"""Column types that mean the same on SQLite and on PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, String, types
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import SQLModel

# Constraints with names of our own, so that a later migration can name them on both databases.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(types.TypeDecorator[datetime]):
    """An aware instant in UTC, on databases with time zones and on those without.

    Raises:
        ValueError: A naive value was given; it would mean another instant on every host.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware value into UTC; SQLite keeps it without its zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give SQLite's value its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def text(length: int | None = None) -> String:
    """Return a text type of at most `length` characters (None: any) that sorts by code point everywhere.

    A page token is a name; with a locale's collation "after this name" would depend on the host.
    """
    return String(length).with_variant(String(length, collation="C"), "postgresql")


# Any: the JSON types accept every JSON value; the columns say what they hold.
Json: Any = JSON().with_variant(JSONB(), "postgresql")

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")
