"""The configuration in force: one reference, swapped by one assignment."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.revocations import RevokedSubjects, Subject, is_for_good, overrules
from dataplane.domain.snapshot import Snapshot

_RETRY_SECONDS: Final = 5
# Credentials whose revocation the snapshot contains; the newest of them are remembered.
_MAX_CONTAINED: Final = 50_000
Mark = tuple[str, int]
Revoked = frozenset[Subject]


class CurrentSnapshot:
    """Holds the snapshot that new requests begin with.

    A revocation may arrive ahead of the transfer that contains it: it is kept, with its position, on
    top of every snapshot that it overrules. Credentials stay revoked even when a database that was
    restored does not know it any more: what this process heard of them counts in every other epoch.

    Attributes:
        must_hear_control_plane: What was revoked cannot be read from the disk, so that the snapshot
            from there may let somebody in who was shut out: nobody is served until a control plane
            has said where the configuration stands.
    """

    def __init__(self, on_termination: Callable[[Revoked], None] | None = None) -> None:
        """Begin without a snapshot; `on_termination` ends streams in flight."""
        self._snapshot: Snapshot | None = None
        # What overrules the snapshot; those of its own epoch, which a later one may contain, are ahead.
        self._pending: dict[Subject, Mark] = {}
        self._ahead: dict[Subject, Mark] = {}
        # The same, as requests see it.
        self._revoked = RevokedSubjects()
        # Those of credentials that the snapshot contains, oldest first.
        self._contained: dict[Subject, Mark] = {}
        self._on_termination = on_termination
        self.must_hear_control_plane = False

    def get(self) -> Snapshot:
        """Return the snapshot in force.

        Raises:
            Refusal: CONFIGURATION_UNAVAILABLE when there never was one, or it must not be served.
        """
        if self._snapshot is None or self.must_hear_control_plane:
            raise Refusal(
                Reason.CONFIGURATION_UNAVAILABLE,
                "This proxy has no configuration yet.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        return self._snapshot

    @property
    def latest(self) -> Snapshot | None:
        """Return the snapshot in force, or None; it need not be one that may be served."""
        return self._snapshot

    @property
    def is_serving(self) -> bool:
        """Return whether `get` gives a snapshot."""
        return self._snapshot is not None and not self.must_hear_control_plane

    @property
    def revocations(self) -> Mapping[Subject, Mark]:
        """Return what is revoked on top of the snapshot: subject → (config epoch, revision)."""
        return dict(self._pending)

    @property
    def pending_count(self) -> int:
        """Return how many subjects are revoked ahead of a transfer, those of other epochs apart."""
        return len(self._ahead)

    def replace(self, snapshot: Snapshot) -> None:
        """Put `snapshot` in force; requests in flight finish on theirs."""
        before = self._snapshot
        if before is None or before.position.config_epoch != snapshot.position.config_epoch:
            self._compare_anew(snapshot)
        else:
            self._remember_contained(snapshot)
        self._snapshot = replace(snapshot, revoked=self._revoked)

    def revoke(
        self, subject: Subject, config_epoch: str, revision: int, *, terminates: bool
    ) -> None:
        """Refuse `subject` (kind, id) from now on; end its streams in flight if asked."""
        snapshot = self._snapshot
        mark = config_epoch, revision
        if snapshot is None or _overrules(subject, mark, snapshot):
            self._put_on_top(subject, mark)
        else:
            self._remember(subject, mark)
        if terminates and self._on_termination is not None:
            self._on_termination(frozenset({subject}))

    def _put_on_top(self, subject: Subject, mark: Mark) -> None:
        # They may come out of order: the newest one says which transfer contains them all.
        self._pending[subject] = mark = max(mark, self._pending.get(subject, mark))
        snapshot = self._snapshot
        if snapshot is None or mark[0] == snapshot.position.config_epoch:
            self._ahead[subject] = mark
        else:
            self._ahead.pop(subject, None)
        if snapshot is not None and subject not in self._revoked:
            self._revoked = self._revoked.and_also(subject)
            self._snapshot = replace(snapshot, revoked=self._revoked)

    def _compare_anew(self, snapshot: Snapshot) -> None:
        """Look at all that is known: with another epoch nothing need be as it was."""
        known = {**self._contained, **self._pending}
        self._pending, self._ahead, self._contained = {}, {}, {}
        for subject, mark in known.items():
            if not _overrules(subject, mark, snapshot):
                self._remember(subject, mark)
                continue
            self._pending[subject] = mark
            if mark[0] == snapshot.position.config_epoch:
                self._ahead[subject] = mark
        self._revoked = RevokedSubjects(self._pending)

    def _remember_contained(self, snapshot: Snapshot) -> None:
        """Take off what `snapshot` contains; what is of other epochs counts on top of each of this one."""
        contained = [each for each in self._ahead.items() if not _overrules(*each, snapshot)]
        for subject, mark in contained:
            del self._ahead[subject], self._pending[subject]
            self._remember(subject, mark)
        if contained:
            self._revoked = RevokedSubjects(self._pending)

    def _remember(self, subject: Subject, mark: Mark) -> None:
        """Remember a credential whose revocation the snapshot contains, for other epochs."""
        if not is_for_good(subject[0]):
            return
        self._contained[subject] = mark
        if len(self._contained) > _MAX_CONTAINED:
            del self._contained[next(iter(self._contained))]


def _overrules(subject: Subject, mark: Mark, snapshot: Snapshot) -> bool:
    position = snapshot.position
    return overrules(subject[0], *mark, position.config_epoch, position.revision)
