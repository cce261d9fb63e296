"""A fleet that keeps how long publications took, for metrics."""

from collections import deque
from typing import Final

from controlplane.domain.histograms import Buckets
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import SecretOpener
from controlplane.snapshots.peers import Peers
from controlplane.snapshots.snapshot import Snapshot

# Commits that wait to be published; more do not fit into the longest wait for company.
_MOST_WAITING: Final = 10_000


class MeasuredFleet(Fleet):
    """Notes when this process committed changes, and when they were offered to the nodes.

    `note_commit` listens to the store. Changes of other control planes have no instant here and are not measured.
    """

    def __init__(self, open_secret: SecretOpener, *, peers: Peers | None = None) -> None:
        super().__init__(open_secret, peers=peers)
        self.published_at_s: float | None = None
        """When something was published last, by `now_s`; None: never."""
        self.publish_seconds = Buckets()
        """From the first commit of a publication until it was offered to the nodes."""
        self._commits: deque[tuple[int, float]] = deque(maxlen=_MOST_WAITING)

    def note_commit(self, revision: int) -> None:
        """Note that a change of this process was committed just now."""
        self._commits.append((revision, self.now_s()))

    def publish(self, snapshot: Snapshot) -> None:
        """Offer `snapshot` to every node."""
        super().publish(snapshot)
        self.published_at_s = now_s = self.now_s()
        first_at_s: float | None = None
        while self._commits and self._commits[0][0] <= snapshot.position.revision:
            _, at_s = self._commits.popleft()
            first_at_s = at_s if first_at_s is None else first_at_s
        if first_at_s is not None:
            self.publish_seconds.observe(now_s - first_at_s)
