"""Messages without their secrets: what the audit shows and what is kept of an answer."""

from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

MASK: Final = "[redacted]"

MessageT = TypeVar("MessageT", bound=Message)


def without_secrets(message: MessageT) -> MessageT:
    """Return a copy in which every field that is marked `debug_redact` is empty."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clear(copy, "")
    return copy


def audited(message: Message) -> dict[str, Any]:  # Any: JSON
    """Return a request as the audit shows it: in the names of the proto, a mark in place of each secret."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clear(copy, MASK)
    shown: dict[str, Any] = MessageToDict(copy, preserving_proto_field_name=True)
    return shown


def _clear(message: Message, mask: str) -> None:
    for field, value in message.ListFields():
        if field.GetOptions().debug_redact:
            message.ClearField(field.name)
            if mask and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                setattr(message, field.name, mask)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in _messages(field, value):
                _clear(child, mask)


def _messages(field: FieldDescriptor, value: Any) -> list[Message]:  # Any: whatever the field holds
    if not field.is_repeated:
        return [value]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return [item for item in value.values() if isinstance(item, Message)]
    return list(value)
