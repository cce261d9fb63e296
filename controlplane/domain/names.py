"""Names are paths: `acme`, `acme/alice`, `acme/alice/laptop`; a subject is a kind and a name: `user:acme/alice`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from controlplane.domain.errors import InvalidError

ID_LENGTH: Final = 12
ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
GLOBAL_SUBJECT: Final = "global"

_SEGMENT: Final = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")

RandomBelow = Callable[[int], int]
"""A source of randomness: a number of at least 0 and below its argument, as `secrets.randbelow` gives."""


class SubjectKind(IntEnum):
    """Whom a limit counts; the numbers of the contract."""

    GLOBAL = 1
    ORGANIZATION = 2
    USER = 3
    KEY = 4


@dataclass(frozen=True, slots=True)
class SubjectName:
    """Whom a limit counts, as people say it; `name` is empty for the service-wide subject."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return GLOBAL_SUBJECT if not self.name else f"{self.kind.name.lower()}:{self.name}"


_DEPTHS: Final = {SubjectKind.ORGANIZATION: 1, SubjectKind.USER: 2, SubjectKind.KEY: 3}


def new_id(random_below: RandomBelow) -> str:
    """Return a new resource id: 12 characters, about 62 random bits."""
    return "".join(ID_ALPHABET[random_below(len(ID_ALPHABET))] for _ in range(ID_LENGTH))


def segments_of(name: str, *, field: str) -> tuple[str, ...]:
    """Split a path into its segments.

    Raises:
        InvalidError: A segment is empty, too long (over 63) or holds another character than `a-z0-9_.-`.
    """
    segments = tuple(name.split("/"))
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise InvalidError(f"not a name: {name[:200]!r}", field=field)
    return segments


def parent_of(name: str) -> str:
    """Return the path above `name`: `acme/alice` of `acme/alice/laptop`, and nothing of `acme`."""
    return name.rpartition("/")[0]


def organization_of(name: str) -> str:
    """Return the first segment of a path that has several, else nothing: a bare name is shared by all."""
    first, slash, _ = name.partition("/")
    return first if slash else ""


def candidates(name: str, organization: str) -> tuple[str, ...]:
    """Return what `name` may stand for in an organization's context, best first.

    A bare name means the organization's own first, then the shared one. Without an organization only shared ones count.
    """
    if "/" in name or not organization:
        return (name,)
    return (f"{organization}/{name}", name)


def parse_subject(text: str, *, field: str) -> SubjectName:
    """Read `user:acme/alice`, `organization:acme`, `key:acme/alice/laptop` or `global`.

    Raises:
        InvalidError: It is none of these.
    """
    if text == GLOBAL_SUBJECT:
        return SubjectName(SubjectKind.GLOBAL, "")
    word, _, name = text.partition(":")
    for kind, depth in _DEPTHS.items():
        if word == kind.name.lower():
            if len(segments_of(name, field=field)) != depth:
                raise InvalidError(f"not the name of a {word}: {name!r}", field=field)
            return SubjectName(kind, name)
    raise InvalidError("a subject is global, organization:NAME, user:NAME or key:NAME", field=field)


def subject_row_id(kind: SubjectKind, subject_id: str) -> str:
    """Return the resource id of a subject's limits: `user:3k2…`, `global`."""
    if kind is SubjectKind.GLOBAL:
        return GLOBAL_SUBJECT
    return f"{kind.name.lower()}:{subject_id}"
