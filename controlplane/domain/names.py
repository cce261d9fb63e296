"""Names are paths: `acme`, `acme/alice`, `acme/alice/laptop`; a subject is a kind and a name: `user:acme/alice`.

Some have no path: a device is named by its id (`device:3k2…`), an address by its text, and an address of IPv6 by its /64
(`ip:2001:db8:0:1::/64`), since whoever has one address of a /64 has them all; an endpoint class by its word
(`endpoint:chat`), a model by what its provider calls it (`model:gpt-4o-mini`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from controlplane.domain.errors import InvalidError

ID_LENGTH: Final = 12
ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
GLOBAL_SUBJECT: Final = "global"

_SEGMENT: Final = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")
_ENDPOINT: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MODEL: Final = re.compile(r"[!-~]{1,200}")
_ID: Final = re.compile(rf"[a-z0-9]{{{ID_LENGTH}}}")
_PREFIX_BITS: Final = 64

RandomBelow = Callable[[int], int]
"""A source of randomness: a number of at least 0 and below its argument, as `secrets.randbelow` gives."""


class SubjectKind(IntEnum):
    """Whom a limit counts; the numbers of the contract."""

    GLOBAL = 1
    ORGANIZATION = 2
    USER = 3
    KEY = 4
    DEVICE = 5
    IP = 6
    ENDPOINT = 7
    MODEL = 8


@dataclass(frozen=True, slots=True)
class SubjectName:
    """Whom a limit counts, as people say it; `name` is empty for the service-wide subject."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return GLOBAL_SUBJECT if not self.name else f"{self.kind.name.lower()}:{self.name}"


_DEPTHS: Final = {SubjectKind.ORGANIZATION: 1, SubjectKind.USER: 2, SubjectKind.KEY: 3}
# Nobody creates them: whatever has the form is one. Classes are also the names of declared routes.
_WORDS: Final = {SubjectKind.ENDPOINT: _ENDPOINT, SubjectKind.MODEL: _MODEL}
_NOUNS: Final = {SubjectKind.ENDPOINT: "an endpoint class", SubjectKind.MODEL: "a model"}


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
    """Read `global` or a kind and a name: `user:acme/alice`, `ip:203.0.113.7`, `model:gpt-4o`; addresses become canonical.

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
    if word == SubjectKind.DEVICE.name.lower():
        if not _ID.fullmatch(name):
            raise InvalidError(f"not the id of a device: {name[:200]!r}", field=field)
        return SubjectName(SubjectKind.DEVICE, name)
    if word == SubjectKind.IP.name.lower():
        return SubjectName(SubjectKind.IP, _address(name, field=field))
    for kind, form in _WORDS.items():
        if word == kind.name.lower():
            if not form.fullmatch(name):
                raise InvalidError(f"not the name of {_NOUNS[kind]}: {name[:200]!r}", field=field)
            return SubjectName(kind, name)
    raise InvalidError(
        "a subject is global, organization:NAME, user:NAME, key:NAME, device:ID, ip:ADDRESS, "
        "endpoint:CLASS or model:NAME",
        field=field,
    )


def _address(text: str, *, field: str) -> str:
    """Return what an address counts as: itself (IPv4) or its /64 (IPv6); an IPv4 address within IPv6 is that of IPv4."""
    literal, slash, bits = text.partition("/")
    refusal = InvalidError(
        f"not an address of IPv4, nor an address or /64 of IPv6: {text[:200]!r}", field=field
    )
    try:
        address: IPv4Address | IPv6Address = ip_address(literal)
    except ValueError:
        raise refusal from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        if address.scope_id is not None or (slash and bits != str(_PREFIX_BITS)):
            raise refusal
        return str(IPv6Network((int(address), _PREFIX_BITS), strict=False))
    if slash:
        raise refusal
    return str(address.ipv4_mapped if isinstance(address, IPv6Address) else address)


def subject_row_id(kind: SubjectKind, subject_id: str) -> str:
    """Return the resource id of a subject's limits: `user:3k2…`, `endpoint:chat`, `global`."""
    if kind is SubjectKind.GLOBAL:
        return GLOBAL_SUBJECT
    return f"{kind.name.lower()}:{subject_id}"
