"""Checks every request against the rules in its proto, before a servicer sees it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import protovalidate
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from controlplane.domain.errors import InvalidError
from controlplane.rpc.interception import Context, Surroundings

# They travel in a header, which has a bound of a few KiB.
MAX_VIOLATIONS: Final = 20
# Fields by which an update says what it changes; they count whatever the mask says.
_IDENTITIES: Final = frozenset({"name", "id"})


class ViolationsError(InvalidError):
    """Rules of the proto that a request breaks: pairs of field path and words."""

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        field, words = violations[0]
        super().__init__(f"{field}: {words}" if field else words, field=field)
        self.violations = tuple(violations[:MAX_VIOLATIONS])


def check_message(message: Message) -> None:
    """Check a request.

    Of an update, the resource's fields outside the mask do not count: they are not going to be used.

    Raises:
        ViolationsError: Names every field that is wrong.
    """
    found = [
        (_path(violation.proto), str(violation.proto.message))
        for violation in protovalidate.collect_violations(message)
    ]
    violations = [item for item in found if _counts(message, item[0])]
    if violations:
        raise ViolationsError(violations)


def _path(violation: Any) -> str:  # Any: buf.validate's own message
    path = ""
    for element in violation.field.elements:
        path += f".{element.field_name}" if path else str(element.field_name)
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def _counts(message: Message, path: str) -> bool:
    mask = getattr(message, "update_mask", None)
    if not isinstance(mask, FieldMask) or "." not in path:
        return True
    field = path.split(".")[1].split("[")[0]
    return field in _IDENTITIES or field in mask.paths


def validation(_method: str) -> Surroundings:
    """Return the check of one method's requests; those of streams are checked by their servicers."""

    @asynccontextmanager
    async def check(request: Any, _context: Context) -> AsyncIterator[None]:
        if isinstance(request, Message):
            check_message(request)
        yield

    return check
