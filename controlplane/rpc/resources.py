"""What all resources of the admin API have in common."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import limits_pb2

from controlplane.domain.errors import InvalidError, StaleError
from controlplane.domain.limits import Limit, LimitUnit, LimitWindow
from controlplane.domain.subject_limits import TemporaryLimit
from controlplane.store.tables import ConfigurationRow


class Stamps(TypedDict):
    """Output fields that every resource has."""

    id: str
    revision: int
    etag: str
    created_at: Timestamp
    updated_at: Timestamp


class HasEtag(Protocol):
    """A request or resource that says which state the caller saw."""

    @property
    def etag(self) -> str:
        """Empty for any state."""
        ...


def stamps_of(row: ConfigurationRow) -> Stamps:
    """Return the output fields of a row."""
    return Stamps(
        id=row.id,
        revision=row.revision,
        etag=etag_of(row),
        created_at=to_timestamp(row.created_at),
        updated_at=to_timestamp(row.updated_at),
    )


def etag_of(row: ConfigurationRow) -> str:
    """Return what changes with every change of the row: its revision, in hexadecimal."""
    return f"{row.revision:x}"


def check_etag(row: ConfigurationRow, seen: HasEtag) -> None:
    """Check that the row is as the caller saw it.

    Raises:
        StaleError: It changed since.
    """
    if seen.etag and seen.etag != etag_of(row):
        raise StaleError("this changed since you read it; read it again", field="etag")


def to_timestamp(instant: datetime) -> Timestamp:
    """Return an aware instant as the contract's type."""
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def from_timestamp(timestamp: Timestamp, *, field: str) -> datetime:
    """Return an instant in UTC, to the microsecond.

    Raises:
        InvalidError: It is out of range.
    """
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidError("not an instant between the years 1 and 9999", field=field) from None


def limit_from_proto(limit: limits_pb2.Limit) -> Limit:
    """Return a limit of a request that was validated; its reset generation is output and left out."""
    return Limit(
        unit=LimitUnit(limit.unit),
        window=LimitWindow(limit.window),
        capacity=limit.capacity,
        unlimited=limit.unlimited,
        soft=limit.soft,
        shadow=limit.shadow,
        every_ms=limit.every_ms,
        burst=limit.burst,
    )


def temporary_from_proto(temporary: limits_pb2.TemporaryLimit, *, field: str) -> TemporaryLimit:
    """Return a temporary limit of a request that was validated; `field` is where it stands there.

    Raises:
        InvalidError: Its end is out of range.
    """
    return TemporaryLimit(
        limit=limit_from_proto(temporary.limit),
        until=from_timestamp(temporary.until, field=f"{field}.until"),
    )


def limit_to_proto(limit: Limit) -> limits_pb2.Limit:
    """Return a limit as the admin API shows it."""
    return limits_pb2.Limit(
        unit=limits_pb2.LimitUnit.ValueType(limit.unit),
        window=limits_pb2.LimitWindow.ValueType(limit.window),
        capacity=limit.capacity,
        unlimited=limit.unlimited,
        soft=limit.soft,
        shadow=limit.shadow,
        reset_generation=limit.reset_generation,
        every_ms=limit.every_ms,
        burst=limit.burst,
    )


def limits_to_proto(items: Iterable[dict[str, Any]]) -> list[limits_pb2.Limit]:  # Any: JSON
    """Return the limits of a row."""
    return [limits_pb2.Limit(**item) for item in items]
