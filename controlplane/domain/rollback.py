"""What a return to a former revision does to one row: pure rules, without a database.

A return must not open a door that was closed since. So nothing that lets somebody in comes back, and nothing that was
counted is forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from controlplane.domain.kinds import Kind

Columns = dict[str, Any]  # Any: JSON

UNTOUCHED: Final = frozenset({Kind.ADMINISTRATOR, Kind.NODE})
"""Kinds that no return changes: who may administer, and who may be a node."""

# What stays as it is now, by kind: hashes and secrets that may have leaked, and the generations of counters, which would
# otherwise count from where they stood before a reset.
_KEPT: Final = {
    Kind.API_KEY: frozenset({"sha256", "display"}),
    Kind.DEVICE: frozenset({"token_sha256"}),
    Kind.CREDENTIAL: frozenset({"version", "sealed_secret", "fingerprint"}),
    Kind.SUBJECT_LIMITS: frozenset({"resets"}),
}
_ALWAYS_KEPT: Final = frozenset({"id", "revision", "created_at", "updated_at"})

# `common.v1.DeviceStatus`: rejected, suspended and revoked.
_REJECTED, _SUSPENDED, _REVOKED = 3, 4, 5

_NEVER_BACK: Final = {
    Kind.API_KEY: "keys that were deleted do not come back: make a new one",
    Kind.DEVICE: "devices that were deleted do not come back: register it anew",
    Kind.CREDENTIAL: "its secret is not kept: create it again",
}

# Whoever is shut out now is so for a reason that a return does not know.
_SHUT_BY: Final = {
    Kind.USER: "suspended",
    Kind.ORGANIZATION: "paused",
    Kind.SERVICE: "paused",
}
_OF_SUSPENSION: Final = frozenset({"status", "suspended_until", "suspension_reason"})


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that stays as it is although it differs."""

    why: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The columns that a row is to have; `note` says what of it stays as it is, if that differs."""

    columns: Columns
    note: str = ""


def restored(kind: Kind, then: Columns, now: Columns | None) -> Restored | Skipped:
    """Return what a row is to be, or why it stays as it is.

    Args:
        kind: What the row is; not one of `UNTOUCHED`.
        then: What it was at the revision to return to.
        now: What it is; None when there is no such row any more.
    """
    if now is None:
        return Skipped(_NEVER_BACK[kind]) if kind in _NEVER_BACK else Restored(then)
    kept = _KEPT.get(kind, frozenset()) | _ALWAYS_KEPT
    notes = []
    for names, note in _closed_doors(kind, then, now):
        kept |= names
        notes.append(note)
    columns = {**then, **{name: now[name] for name in kept if name in now}}
    return Restored(columns, "; ".join(notes))


def _closed_doors(kind: Kind, then: Columns, now: Columns) -> Iterator[tuple[frozenset[str], str]]:
    """Yield which columns stay as they are because they shut somebody out since, and how that is said."""
    if kind is Kind.API_KEY:
        if now["revoked"] and not then["revoked"]:
            yield frozenset({"revoked"}), "a revoked key stays revoked"
        if _is_before(now["expires_at"], then["expires_at"]):
            yield frozenset({"expires_at"}), "a key's earlier expiry stays"
    if kind is Kind.DEVICE and now["status"] != then["status"]:
        if now["status"] in (_REJECTED, _REVOKED):
            yield _OF_SUSPENSION, "a device that was rejected or revoked stays so"
        elif now["status"] == _SUSPENDED:
            yield _OF_SUSPENSION, "it stays suspended"
    shut_by = _SHUT_BY.get(kind)
    if shut_by and now[shut_by] and not then[shut_by]:
        yield frozenset({shut_by}), f"it stays {shut_by}"


def _is_before(one: str | None, other: str | None) -> bool:
    """Compare instants of RFC 3339; None is never."""
    if one is None or other is None:
        return one is not None
    return datetime.fromisoformat(one) < datetime.fromisoformat(other)


def differs(one: Columns | None, other: Columns | None) -> bool:
    """Say whether two versions of a row differ in more than when they were written."""
    if one is None or other is None:
        return one is not other
    return {k: v for k, v in one.items() if k not in _ALWAYS_KEPT} != {
        k: v for k, v in other.items() if k not in _ALWAYS_KEPT
    }
