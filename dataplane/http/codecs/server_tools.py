"""What of a request a provider runs and bills by itself, so that nothing bounds what it costs.

Providers add tools faster than a gateway learns of them. So the closed list is that of the types
which the caller runs; every other is taken for the provider's own, those to come as well.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from dataplane.http.codecs.decoding import (
    ESCAPED_LETTER,
    Fields,
    decoded,
    invalid,
    is_plain,
)

_MAX_SHOWN_TYPES: Final = 8
_MAX_TYPE_LENGTH: Final = 64
_FIELDS: Final = msgspec.json.Decoder(Fields)
_NULL: Final = msgspec.Raw(b"null")


def unbounded_types(
    param: str, objects: Sequence[msgspec.Raw], is_bounded: Callable[[str | None], bool]
) -> tuple[str, ...]:
    """Return the types of `objects`, the items of the list `param`, that are not bounded.

    They are shortened, and of many the first few are returned: they are shown to the caller.
    `param` stands for an object without a type, and for one that names it twice: which of them
    counts is the provider's choice.

    Raises:
        Refusal: INVALID_REQUEST when one is no object, or its type no text.
    """
    found: dict[str, None] = {}
    for place, each in enumerate(objects):
        fields = fields_of(f"{param}[{place}]", each)
        name = _text(f"{param}[{place}].type", fields.get("type", _NULL))
        if names_twice(each, fields, "type"):
            found[param] = None
        elif not is_bounded(name):
            found[(name or param)[:_MAX_TYPE_LENGTH]] = None
    return tuple(found)[:_MAX_SHOWN_TYPES]


def fields_of(param: str, value: msgspec.Raw) -> Fields:
    """Return the fields of the object `value`; of two with the same name the last.

    Raises:
        Refusal: INVALID_REQUEST when it is no object.
    """
    return decoded(_FIELDS, bytes(value), param)


def names_twice(value: msgspec.Raw, fields: Fields, name: str) -> bool:
    """Return whether the object `value` may give `name` more than once; `fields` are what was read.

    Counted is what stands outside of the values that were read: names, and what a name that came
    again has hidden. An escaped letter there counts too: it may spell any name.
    """
    if is_plain(bytes(value), fields):
        return False
    quoted = b'"%b"' % name.encode()
    within = sum(_mentions(quoted, bytes(each)) for each in fields.values())
    return _mentions(quoted, bytes(value)) - within > (name in fields)


def _mentions(quoted: bytes, text: bytes) -> int:
    escaped = len(ESCAPED_LETTER.findall(text)) if b"\\u00" in text else 0
    return text.count(quoted) + escaped


def _text(param: str, value: msgspec.Raw) -> str | None:
    text = msgspec.json.decode(value)
    if text is not None and not isinstance(text, str):
        raise invalid(param, "It is a text.")
    return text
