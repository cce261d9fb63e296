"""The configuration in force: one reference, swapped by one assignment."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Snapshot

_RETRY_SECONDS: Final = 5
Revoked = frozenset[tuple[str, str]]


class CurrentSnapshot:
    """Holds the snapshot that new requests begin with.

    A revocation may arrive ahead of the transfer that contains it: it is kept, with its revision,
    on top of every older snapshot, and dropped by the first that is as new.
    """

    def __init__(self, on_termination: Callable[[Revoked], None] | None = None) -> None:
        self._snapshot: Snapshot | None = None
        self._pending: dict[tuple[str, str], tuple[str, int]] = {}
        self._on_termination = on_termination

    def get(self) -> Snapshot:
        """Return the snapshot in force.

        Raises:
            Refusal: CONFIGURATION_UNAVAILABLE when there never was one.
        """
        if self._snapshot is None:
            raise Refusal(
                Reason.CONFIGURATION_UNAVAILABLE,
                "This proxy has no configuration yet.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        return self._snapshot

    @property
    def latest(self) -> Snapshot | None:
        """Return the snapshot in force, or None."""
        return self._snapshot

    @property
    def revocations(self) -> Mapping[tuple[str, str], tuple[str, int]]:
        """Return what is revoked ahead of a transfer: subject → (config epoch, revision)."""
        return dict(self._pending)

    def replace(self, snapshot: Snapshot) -> None:
        """Put `snapshot` in force; requests in flight finish on theirs."""
        position = snapshot.position
        self._pending = {
            subject: (epoch, revision)
            for subject, (epoch, revision) in self._pending.items()
            if epoch == position.config_epoch and revision > position.revision
        }
        self._snapshot = replace(snapshot, revoked=frozenset(self._pending))

    def revoke(
        self, subject: tuple[str, str], config_epoch: str, revision: int, *, terminates: bool
    ) -> None:
        """Refuse `subject` (kind, id) from now on; end its streams in flight if asked."""
        snapshot = self._snapshot
        is_older = snapshot is None or (
            snapshot.position.config_epoch != config_epoch or snapshot.position.revision < revision
        )
        if is_older:
            # They may come out of order: the newest one says which transfer contains them all.
            epoch, newest = self._pending.get(subject, (config_epoch, revision))
            newest = max(newest, revision) if epoch == config_epoch else revision
            self._pending[subject] = (config_epoch, newest)
        if snapshot is not None and is_older:
            self._snapshot = replace(snapshot, revoked=frozenset(self._pending))
        if terminates and self._on_termination is not None:
            self._on_termination(frozenset({subject}))
