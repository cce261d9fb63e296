"""Subjects of counters by name: what people call those that the ledger and the data planes know by id."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from sqlmodel import col, select

from controlplane.domain.counters import address_subject_id
from controlplane.domain.errors import InvalidError, NotFoundError
from controlplane.domain.names import GLOBAL_SUBJECT, SubjectKind, parse_subject
from controlplane.rpc.limits import subject_id_of
from controlplane.store.repositories import Repositories
from controlplane.store.tables import SubjectLimits

# Of a resource, or of an address: a digest, behind the name of the tier whose callers it counts there.
_ID: Final = re.compile(r"[a-z0-9]{12}|(?:[a-z0-9_.-]{1,16}-)?[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{16}")
_ADDRESSES_AT_ONCE: Final = 1_000
_WORDS: Final = {kind.name.lower(): kind for kind in SubjectKind}

Subject = tuple[int, str]
"""The number of a kind, and an id."""


async def names_of(rows: Repositories, subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Return the name of each subject now: `user:acme/alice`; of one that is gone, kind and id: `user:3k2…`."""
    by_kind: dict[int, set[str]] = defaultdict(set)
    for kind, subject_id in subjects:
        by_kind[kind].add(subject_id)
    return {
        (kind, subject_id): _text(kind, names.get(subject_id, subject_id))
        for kind, subject_ids in by_kind.items()
        for names in [await _names(rows, kind, subject_ids)]
        for subject_id in subject_ids
    }


async def counted_subject(rows: Repositories, text: str, *, field: str) -> tuple[SubjectKind, str]:
    """Return the kind and the id under which the ledger knows a subject, named as by `names_of`.

    Raises:
        InvalidError: It is no subject.
        NotFoundError: There is none of that name, and it is not an id.
    """
    try:
        subject = parse_subject(text, field=field)
        subject_id = await subject_id_of(rows, subject)
    except (InvalidError, NotFoundError):
        word, _, gone = text.partition(":")
        if word not in _WORDS or not _ID.fullmatch(gone):
            raise
        return _WORDS[word], gone
    return subject.kind, ledger_id_of(subject.kind, subject_id)


def ledger_id_of(kind: SubjectKind, subject_id: str) -> str:
    """Return the id under which the ledger knows a subject of limits: addresses by their digests, others as they are."""
    return address_subject_id(subject_id) if kind is SubjectKind.IP else subject_id


async def _names(rows: Repositories, kind: int, subject_ids: set[str]) -> dict[str, str]:
    match kind:
        case SubjectKind.ORGANIZATION:
            found = await rows.organizations.by_ids(list(subject_ids))
            return {row.id: row.name for row in found.values()}
        case SubjectKind.USER:
            users = await rows.users.by_ids(list(subject_ids))
            return {row.id: row.name for row in users.values()}
        case SubjectKind.KEY:
            keys = await rows.api_keys.by_ids(list(subject_ids))
            return {row.id: row.name for row in keys.values()}
        case SubjectKind.IP:
            return await _addresses(rows, subject_ids)
        case _:
            return {}


async def _addresses(rows: Repositories, subject_ids: set[str]) -> dict[str, str]:
    """Return by digest those of the addresses asked for that have limits of their own; of others nobody knows them here.

    No digest can be looked up, so addresses are read and digested a part at a time, until each was found. Behind the name
    of a tier nobody has limits of his own: for these alone nothing is read.
    """
    wanted = {subject_id for subject_id in subject_ids if _DIGEST.fullmatch(subject_id)}
    if not wanted:
        return {}
    statement = select(SubjectLimits.subject_id).where(
        col(SubjectLimits.subject_kind) == int(SubjectKind.IP)
    )
    found: dict[str, str] = {}
    connection = await rows.session.connection()
    options = {"yield_per": _ADDRESSES_AT_ONCE, "max_row_buffer": _ADDRESSES_AT_ONCE}
    async with connection.stream(statement, execution_options=options) as addresses:
        async for part in addresses.scalars().partitions():
            for address in part:
                digest = address_subject_id(address)
                if digest in wanted:
                    found[digest] = address
            if len(found) == len(wanted):
                break
    return found


def _text(kind: int, name: str) -> str:
    if kind == SubjectKind.GLOBAL:
        return GLOBAL_SUBJECT
    words = {int(value): word for word, value in _WORDS.items()}
    return f"{words.get(kind, kind)}:{name}"
