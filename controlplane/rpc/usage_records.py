"""Usage records as they travel, and as the ledger keeps them.

Both have the same fields by the same names, so one walk over the names does for all of them.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.domain.usage import UsageState
from controlplane.store.tables import UsageRow

# Amounts stay exact in a double, and in JSON.
MAX_AMOUNT: Final = 2**53
MAX_GENERATIONS: Final = 100
MAX_LAYERS: Final = 32
MAX_ADDRESS_SUBJECTS: Final = 4
# Of names of layers, and of ids that the data planes make of addresses.
MAX_NAME: Final = 100

# Smaller numbers have columns of 16 or 32 bits.
_CEILINGS: Final = {
    "state": 2**15 - 1,
    "http_status": 999,
    "dialect": 2**15 - 1,
    "source": 2**15 - 1,
    "attempts": 2**31 - 1,
}
_PERIODS: Final = {
    "usage_day": re.compile(r"(\d{8})?", re.ASCII),
    "usage_month": re.compile(r"(\d{6})?", re.ASCII),
    "service_day": re.compile(r"(\d{8})?", re.ASCII),
}
# Before there was this software, and after anybody could blame it.
EARLIEST: Final = datetime(2020, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)

_TEXT: Final = FieldDescriptor.TYPE_STRING
_APART: Final = frozenset({"started_at", "generations", "rates", "address_subjects", "layers"})


def _type_of(name: str) -> int:
    return int(pb.UsageRecord.DESCRIPTOR.fields_by_name[name].type)


_PLAIN_FIELDS: Final = tuple(
    field.name for field in pb.UsageRecord.DESCRIPTOR.fields if field.name not in _APART
)
_AMOUNTS_OF_LAYERS: Final = ("capacities", "reserved", "remaining")
_PLACES_OF_LAYERS: Final = ("shadow", "soft")
# By their form: hundreds of records a second are looked at field by field.
_TEXT_FIELDS: Final = tuple(name for name in _PLAIN_FIELDS if _type_of(name) == _TEXT)
_NUMBER_FIELDS: Final = tuple(
    (name, _CEILINGS.get(name, MAX_AMOUNT))
    for name in _PLAIN_FIELDS
    if _type_of(name) not in (_TEXT, FieldDescriptor.TYPE_BOOL)
)
# What callers say about themselves has no bound of its own.
MAX_TEXT: Final = 1_000


class InvalidRecordError(Exception):
    """A record can never be stored; the text names its request and its field."""


def row_from_record(record: pb.UsageRecord) -> dict[str, Any]:
    """Return a value for every column of the ledger.

    Text is descriptive and partly the caller's own, so it is made storable instead of refused: cut
    to `MAX_TEXT` characters, and without the NUL characters that PostgreSQL does not take.

    Raises:
        InvalidRecordError: The identity, an amount or a time makes no sense.
    """
    _require(is_request_id(record.request_id), record, "request_id")
    _require(int(record.state) in tuple(UsageState), record, "state")
    row: dict[str, Any] = {name: getattr(record, name) for name in _PLAIN_FIELDS}
    for name in _TEXT_FIELDS:
        text = row[name]
        if len(text) > MAX_TEXT or "\0" in text:
            row[name] = text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_TEXT]
    for name, ceiling in _NUMBER_FIELDS:
        if not 0 <= row[name] <= ceiling:
            raise _invalid(record, name)
    for name, pattern in _PERIODS.items():
        _require(pattern.fullmatch(row[name]) is not None, record, name)
    row["generations"] = _generations(record)
    row["started_at"] = _started_at(record)
    row["rates"] = _rates(record)
    row["address_subjects"] = _address_subjects(record)
    row["layers"] = _layers(record)
    return row


def record_from_row(row: UsageRow, *, with_layers: bool = True) -> pb.UsageRecord:
    """Return the record that a row of the ledger was made from, with or without the layers that admission tried."""
    values: Mapping[str, Any] = {name: getattr(row, name) for name in _PLAIN_FIELDS}
    started_at = Timestamp()
    started_at.FromDatetime(row.started_at)
    return pb.UsageRecord(
        **values,
        started_at=started_at,
        generations=[pb.CountedGeneration(**generation) for generation in row.generations],
        rates=None if row.rates is None else rates_pb2.Rates(**row.rates),
        address_subjects=row.address_subjects,
        layers=pb.TriedLayers(**row.layers) if with_layers and row.layers else None,
    )


def _generations(record: pb.UsageRecord) -> list[dict[str, Any]]:
    _require(len(record.generations) <= MAX_GENERATIONS, record, "generations")
    for each in record.generations:
        is_sound = 0 <= each.reset_generation <= MAX_AMOUNT and _is_name(each.layer, may_lack=True)
        _require(is_sound, record, "generations")
    return [
        {"layer": each.layer, "reset_generation": each.reset_generation}
        for each in record.generations
    ]


def _rates(record: pb.UsageRecord) -> dict[str, int] | None:
    """Return the price's figures as keyword arguments of `common.v1.Rates`; those that it lacks are left out."""
    if not record.HasField("rates"):
        return None
    rates = {field.name: value for field, value in record.rates.ListFields()}
    _require(all(0 <= rate <= MAX_AMOUNT for rate in rates.values()), record, "rates")
    return rates


def _address_subjects(record: pb.UsageRecord) -> list[str]:
    subjects = record.address_subjects
    is_sound = len(subjects) <= MAX_ADDRESS_SUBJECTS and len(set(subjects)) == len(subjects)
    _require(is_sound and all(map(_is_name, subjects)), record, "address_subjects")
    return list(subjects)


def _layers(record: pb.UsageRecord) -> dict[str, list[Any]]:
    """Return the layers as keyword arguments of `TriedLayers`; none where there are none."""
    if not record.HasField("layers"):
        return {}
    columns = {field.name: list(values) for field, values in record.layers.ListFields()}
    names = columns.get("names", [])
    is_sound = (
        len(names) <= MAX_LAYERS
        and _are_names(names)
        and all(_are_amounts(columns.get(name, []), len(names)) for name in _AMOUNTS_OF_LAYERS)
        and all(_are_places(columns.get(name, []), len(names)) for name in _PLACES_OF_LAYERS)
    )
    _require(is_sound, record, "layers")
    return columns


def _are_names(names: Sequence[str]) -> bool:
    # As `_is_name` of each, all at once: a batch has thousands.
    return not names or (
        all(names) and max(map(len, names)) <= MAX_NAME and "\0" not in "".join(names)
    )


def _are_amounts(values: Sequence[int], count: int) -> bool:
    return len(values) == count and (not count or (min(values) >= 0 and max(values) <= MAX_AMOUNT))


def _are_places(values: Sequence[int], count: int) -> bool:
    return len(values) <= count and all(value < count for value in values)


def _is_name(text: str, *, may_lack: bool = False) -> bool:
    return (may_lack or bool(text)) and len(text) <= MAX_NAME and "\0" not in text


def _started_at(record: pb.UsageRecord) -> datetime:
    try:
        started_at = record.started_at.ToDatetime(tzinfo=UTC)
    except ValueError:
        started_at = LATEST
    _require(EARLIEST <= started_at < LATEST, record, "started_at")
    return started_at


def is_request_id(text: str) -> bool:
    """Say whether a text is a request's id: a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _require(holds: bool, record: pb.UsageRecord, field: str) -> None:
    if not holds:
        raise _invalid(record, field)


def _invalid(record: pb.UsageRecord, field: str) -> InvalidRecordError:
    return InvalidRecordError(f"request {record.request_id[:64]!r}: {field} makes no sense")
