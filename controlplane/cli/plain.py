"""Messages as plain values: what `-o json` shows.

Protobuf's own JSON writes 64-bit integers as text and enums with their prefix, and leaves out what is zero. Here every
field is present, under its snake_case name; integers are numbers, enums are lower-case words without their prefix and
null when not given, instants are ISO 8601 in UTC, bytes are hexadecimal, absent messages and absent optional fields null.
A `Struct` is the object that it stands for. Who has applied a change is no part of a resource: `waiting` shows it.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message
    from google.protobuf.struct_pb2 import Struct, Value
    from google.protobuf.timestamp_pb2 import Timestamp

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"
Record: TypeAlias = dict[str, Plain]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEFT_OUT = "propagation"


def record_of(message: "Message") -> Record:
    """Return all fields of a message by name, in the order in which the contract declares them."""
    fields = message.DESCRIPTOR.fields
    return {
        field.name: _field(message, field)  # type: ignore[arg-type]  # the stubs name the C classes beside it
        for field in fields
        if field.name != _LEFT_OUT
    }


def object_of(struct: "Struct") -> Record:
    """Return the object that a `Struct` stands for, its fields by name."""
    return {name: _json_value(value) for name, value in sorted(struct.fields.items())}


def iso_instant(timestamp: "Timestamp") -> str:
    """Return an instant as `2026-01-31T12:00:00.250000Z`; without a fraction when it has none."""
    instant = _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    return instant.isoformat().replace("+00:00", "Z")


def enum_word(enum: "EnumDescriptor", number: int) -> str | None:
    """Return an enum value in lower case without its prefix; None for the zero value.

    A number that a newer control plane sent and this program does not know is shown as it is.
    """
    if number == 0:
        return None
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower()


def _field(message: "Message", field: "FieldDescriptor") -> Plain:
    value = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        item_field = entry.fields_by_name["value"]
        return {str(key): _one(item_field, item) for key, item in sorted(value.items())}
    if field.is_repeated:
        return [_one(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _one(field, value)


def _one(field: "FieldDescriptor", value: object) -> Plain:
    from google.protobuf.message import Message
    from google.protobuf.struct_pb2 import Struct
    from google.protobuf.timestamp_pb2 import Timestamp

    if isinstance(value, Timestamp):
        return iso_instant(value)
    if isinstance(value, Struct):
        return object_of(value)
    if isinstance(value, Message):
        return record_of(value)
    if isinstance(value, bytes):
        return value.hex()
    if field.enum_type is not None and isinstance(value, int):
        return enum_word(field.enum_type, value)
    if isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{field.full_name} holds a {type(value).__name__}")


def _json_value(value: "Value") -> Plain:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            # A Struct knows doubles only; what was an integer is one again.
            return int(number) if number.is_integer() else number
        case "struct_value":
            return object_of(value.struct_value)
        case "list_value":
            return [_json_value(item) for item in value.list_value.values]
        case _:
            return None
