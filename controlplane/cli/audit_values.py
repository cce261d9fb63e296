"""Values of the audit log in words.

Requests are kept as they came, changes as the database holds them: with enums as numbers. Here both read as everywhere
else, and the values of a change are shortened to what a table has room for.
"""

import json
from typing import TYPE_CHECKING, Final

from controlplane.cli.durations import text_of_ms
from controlplane.cli.lazy_modules import imported_on_use
from controlplane.cli.money import usd_from_nanousd
from controlplane.cli.output import one_line
from controlplane.cli.plain import Plain, Record, enum_word

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor
    from tollkeeper.admin.v1 import administrator_service_pb2
    from tollkeeper.common.v1 import devices_pb2, limits_pb2
    from tollkeeper.config.v1 import resources_pb2
else:
    administrator_service_pb2 = imported_on_use("tollkeeper.admin.v1.administrator_service_pb2")
    devices_pb2 = imported_on_use("tollkeeper.common.v1.devices_pb2")
    limits_pb2 = imported_on_use("tollkeeper.common.v1.limits_pb2")
    resources_pb2 = imported_on_use("tollkeeper.config.v1.resources_pb2")

# A table is for a glance; -o json has everything.
_MOST_SHOWN_CHARACTERS: Final = 60


def in_words(record: Record) -> Record:
    """Return what resources held or hold, each enum's number as its word."""
    return {name: _in_words(name, value) for name, value in record.items()}


def short_text(value: Plain) -> str:
    """Return a value for a table: limits as people say them, all else as JSON without what is too long."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = ", ".join(_limit_text(item) for item in value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = one_line(text)
    return text if len(text) <= _MOST_SHOWN_CHARACTERS else f"{text[:_MOST_SHOWN_CHARACTERS]}…"


def _enum_of(name: str) -> "EnumDescriptor | None":
    """Return the enum that a field of that name holds, in whatever resource; no other field has the name."""
    match name:
        case "dialect":
            return resources_pb2.Dialect.DESCRIPTOR
        case "on_limits_unavailable":
            return resources_pb2.LimitsUnavailablePolicy.DESCRIPTOR
        case "role":
            return administrator_service_pb2.Role.DESCRIPTOR
        case "status":
            return devices_pb2.DeviceStatus.DESCRIPTOR
        case "subject_kind":
            return limits_pb2.SubjectKind.DESCRIPTOR
        case "unit":
            return limits_pb2.LimitUnit.DESCRIPTOR
        case "window":
            return limits_pb2.LimitWindow.DESCRIPTOR
        case _:
            return None


def _in_words(name: str, value: Plain) -> Plain:
    match value:
        case dict():
            return in_words(value)
        case list():
            return [_in_words(name, item) for item in value]
        case int() if not isinstance(value, bool) and (enum := _enum_of(name)) is not None:
            return enum_word(enum, value)
        case _:
            return value


def _limit_text(item: Plain) -> str:
    """Return a limit as `100 requests/day`, a temporary one with its end, a reset as such; what is none as it is."""
    if isinstance(item, str):
        return item
    if (temporary := _field(item, "limit")) is not None:
        return f"{_limit_text(temporary)} until {_field(item, 'until')}"
    unit, window, capacity = (_field(item, name) for name in ("unit", "window", "capacity"))
    generation = _field(item, "reset_generation")
    if isinstance(unit, str) and isinstance(capacity, int):
        return _amount_text(item, unit, window, capacity)
    if isinstance(unit, str) and isinstance(generation, int):
        return f"{unit}/{window}: generation {generation}"
    return json.dumps(item, ensure_ascii=False)


def _amount_text(item: Plain, unit: str, window: Plain, capacity: int) -> str:
    amount = f"{usd_from_nanousd(capacity)} USD" if unit == "spend" else f"{capacity} {unit}"
    if _field(item, "unlimited"):
        amount = f"unlimited {unit}"
    every_ms, burst = _field(item, "every_ms"), _field(item, "burst")
    if isinstance(every_ms, int) and every_ms:
        at_once = f" ({burst} at once)" if burst else ""
        return f"{amount} every {text_of_ms(every_ms)}{at_once}"
    return f"{amount}/{window}" if window else amount


def _field(item: Plain, name: str) -> Plain:
    return item.get(name) if isinstance(item, dict) else None
