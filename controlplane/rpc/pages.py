"""Pages of lists. A token says behind which entry to go on, and for which list it was made."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from controlplane.domain.errors import InvalidError

DEFAULT_SIZE: Final = 100
_MAX_ROW_NUMBER: Final = 2**63 - 1
MAX_SIZE: Final = 1_000

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list a request wants: `size` entries behind `after` (empty: from the beginning)."""

    size: int
    after: tuple[str, ...]
    list_digest: str

    @property
    def fetch(self) -> int:
        """How many rows to read: one more than the page has, to know whether another page follows."""
        return self.size + 1

    @property
    def after_name(self) -> str:
        """The name behind which to go on, for lists in the order of names."""
        return self.after[0] if self.after else ""

    def cut(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Return the rows that belong to this page."""
        return rows[: self.size]

    def next_token(self, rows: Sequence[Any], *columns: str) -> str:
        """Return the token of the page after this one; empty when this is the last.

        Args:
            rows: What was read, `fetch` rows at most.
            columns: By what the list is ordered.
        """
        if len(rows) <= self.size:
            return ""
        last = rows[self.size - 1]
        key = [str(getattr(last, column)) for column in columns]
        text = json.dumps([self.list_digest, *key], ensure_ascii=False, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()


def page_of(request: Any, *, keys: int = 1) -> Page:  # Any: each list has a request type of its own
    """Return the page that a List request wants.

    Args:
        request: Has `page_size` and `page_token`; its other fields choose the list.
        keys: How many columns order the list.

    Raises:
        InvalidError: The token is not one of ours, or was made for another list.
    """
    digest = _digest_of(request)
    after = _read(request.page_token, digest, keys) if request.page_token else ()
    return Page(min(request.page_size or DEFAULT_SIZE, MAX_SIZE), after, digest)


def row_number_of(text: str) -> int:
    """Return the number of a row that a token holds as text.

    Raises:
        InvalidError: It is none that a database could have given.
    """
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_ROW_NUMBER))
    number = int(text) if is_number else 0
    if not 0 < number <= _MAX_ROW_NUMBER:
        raise InvalidError("this is not a token of this list", field="page_token")
    return number


def _digest_of(request: Message) -> str:
    copy: Any = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("page_token")
    copy.ClearField("page_size")
    content = request.DESCRIPTOR.full_name.encode() + copy.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:16]


def _read(token: str, digest: str, keys: int) -> tuple[str, ...]:
    refusal = InvalidError("this is not a token of this list", field="page_token")
    try:
        parts = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise refusal from None
    if not isinstance(parts, list) or len(parts) != keys + 1 or parts[0] != digest:
        raise refusal
    if not all(isinstance(part, str) for part in parts):
        raise refusal
    return tuple(parts[1:])
