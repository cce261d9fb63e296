"""The form of a record in a spool's file: length, checksum, kind, then what it says."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from dataplane.domain.calls import UsageEvent

# An event is about a thousand bytes; what says more is not one of ours.
MAX_PAYLOAD_BYTES: Final = 64 * 1024

# As much of a text as the ledger keeps.
_MAX_TEXT: Final = 1_000

_HEAD: Final = struct.Struct("<IIB")
_SEED: Final = struct.Struct("<IB")
MAX_RECORD_BYTES: Final = _HEAD.size + MAX_PAYLOAD_BYTES

_encode: Final = msgspec.msgpack.Encoder().encode


class Kind(IntEnum):
    """What a record says."""

    OPEN = 1
    CLOSE = 2
    ACKNOWLEDGED = 3


_KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is as it was written; `offset` and `end` are bytes of its file."""

    kind: Kind
    payload: memoryview
    offset: int
    end: int


class DamagedRecordError(Exception):
    """A record that is all there is not what was written; the text says where."""


class UnreadableEventError(Exception):
    """An event was written by a version of this program whose events had another form."""


class _Named(msgspec.Struct):
    request_id: str


_event_decoder: Final = msgspec.msgpack.Decoder(UsageEvent)
_name_decoder: Final = msgspec.msgpack.Decoder(_Named)
_ids_decoder: Final = msgspec.msgpack.Decoder(list[str])


def encode_event(kind: Kind, event: UsageEvent) -> bytes:
    """Return the bytes of an OPEN or CLOSE record; any event has some.

    Callers choose some of the texts: one that is endless is cut, one that is no text is repaired.
    """
    try:
        payload = _encode(event)
    except UnicodeEncodeError:
        payload = _encode(_tamed(event))
    if len(payload) > MAX_PAYLOAD_BYTES:
        payload = _encode(_tamed(event))
    return _framed(kind, payload)


def encode_acknowledged(request_ids: list[str]) -> bytes:
    """Return the bytes of a record that says which requests are in the ledger."""
    return _framed(Kind.ACKNOWLEDGED, _encode(request_ids))


def records_in(data: bytes) -> Iterator[Record]:
    """Yield the records of a file in their order, up to a last one that is not all there.

    Raises:
        DamagedRecordError: The next record is damaged; where it ends cannot be known.
    """
    view, offset = memoryview(data), 0
    while offset + _HEAD.size <= len(view):
        length, checksum, kind = _HEAD.unpack_from(view, offset)
        end = offset + _HEAD.size + length
        if length > MAX_PAYLOAD_BYTES:
            raise DamagedRecordError(f"no record is as long as the one at byte {offset}")
        if end > len(view):
            return
        payload = view[offset + _HEAD.size : end]
        if _checksum(kind, payload) != checksum or kind not in _KINDS:
            raise DamagedRecordError(f"the record at byte {offset} was changed")
        yield Record(Kind(kind), payload, offset, end)
        offset = end


def request_id_of(record: Record) -> str:
    """Return the request that an OPEN or CLOSE record is about, without reading the rest.

    Raises:
        UnreadableEventError: Nothing of it can be read.
    """
    try:
        return _name_decoder.decode(record.payload).request_id
    except msgspec.DecodeError as error:
        raise UnreadableEventError("a record names no request") from error


def event_in(record: Record) -> UsageEvent:
    """Return the event of an OPEN or CLOSE record.

    Raises:
        UnreadableEventError: It has another form.
    """
    try:
        return _event_decoder.decode(record.payload)
    except msgspec.DecodeError as error:
        raise UnreadableEventError(str(error)) from error


def acknowledged_in(record: Record) -> list[str]:
    """Return the requests that an ACKNOWLEDGED record names.

    Raises:
        UnreadableEventError: It is another record.
    """
    try:
        return _ids_decoder.decode(record.payload)
    except msgspec.DecodeError as error:
        raise UnreadableEventError(str(error)) from error


def _tamed(event: UsageEvent) -> UsageEvent:
    texts = {
        name: value.encode("utf-8", "replace").decode()[:_MAX_TEXT]
        for name in event.__struct_fields__
        if type(value := getattr(event, name)) is str
    }
    return msgspec.structs.replace(event, **texts)


def _framed(kind: Kind, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), _checksum(kind, payload), kind) + payload


def _checksum(kind: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_SEED.pack(len(payload), kind)))
