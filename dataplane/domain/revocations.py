"""Which revocation counts above which configuration.

A revocation is told apart from the configuration and ahead of it, so a node may have a snapshot that
is older or newer than the revocation. Revisions of one epoch can be compared: a snapshot at or above
the revocation's revision contains it. Revisions of different epochs cannot: the database was restored
in between, perhaps from a copy that is older than the revocation. The same rule is in the script that
admits (`dataplane/limits/scripts/admit.lua`).
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from typing import Final

KEY: Final = "key"
DEVICE: Final = "device"
USER: Final = "user"
ORGANIZATION: Final = "organization"

# A credential that was revoked never comes back, even from a restored backup: it may be known to somebody.
_FOR_GOOD: Final = frozenset({KEY, DEVICE})
# To add one to a hundred thousand costs what it costs to copy so many.
_MOST_NEWEST: Final = 256

Subject = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Revocation:
    """Something that is refused from now on.

    Attributes:
        kind: `key`, `device`, `user` or `organization`.
        subject_id: Which of that kind.
        organization_id: The organization that it belongs to, or is; empty for a device that never
            had a user.
        config_epoch: The epoch of `revision`.
        revision: The change that made it; snapshots at or above it contain it.
        terminates: Its streams in flight end too.
    """

    kind: str
    subject_id: str
    organization_id: str
    config_epoch: str
    revision: int
    terminates: bool

    @property
    def subject(self) -> Subject:
        """Return (kind, id)."""
        return self.kind, self.subject_id


class RevokedSubjects(AbstractSet[Subject]):
    """An immutable set of (kind, id), of which one with another subject is made without copying it all."""

    __slots__ = ("_most", "_newest")

    def __init__(self, subjects: Iterable[Subject] = ()) -> None:
        """Hold `subjects`."""
        self._most = frozenset(subjects)
        self._newest: frozenset[Subject] = frozenset()

    def __contains__(self, subject: object) -> bool:
        return subject in self._newest or subject in self._most

    def __iter__(self) -> Iterator[Subject]:
        return chain(self._most, self._newest)

    def __len__(self) -> int:
        return len(self._most) + len(self._newest)

    def and_also(self, subject: Subject) -> "RevokedSubjects":
        """Return these and `subject`."""
        if subject in self:
            return self
        if len(self._newest) >= _MOST_NEWEST:
            return RevokedSubjects((*self, subject))
        more = RevokedSubjects()
        more._most, more._newest = self._most, self._newest | {subject}
        return more


def is_for_good(kind: str) -> bool:
    """Return whether a revocation of such a subject counts in every epoch but its own."""
    return kind in _FOR_GOOD


def overrules(
    kind: str, mark_epoch: str, mark_revision: int, snapshot_epoch: str, snapshot_revision: int
) -> bool:
    """Return whether a revocation refuses its subject whatever the snapshot says of it.

    Args:
        kind: Of the subject.
        mark_epoch: The epoch of the revocation.
        mark_revision: Its revision.
        snapshot_epoch: The epoch of the snapshot.
        snapshot_revision: Its revision.
    """
    if mark_epoch == snapshot_epoch:
        return mark_revision > snapshot_revision
    # Later epochs are greater as text: users and organizations may have been restored on purpose.
    return is_for_good(kind) or mark_epoch > snapshot_epoch
