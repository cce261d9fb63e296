"""What the streams of a control plane did since it started: numbers for its metrics, and when what was published."""

from bisect import bisect_right
from collections import Counter
from typing import Final

from controlplane.snapshots.snapshot import Position

# Longer than any node stays connected and behind, at one publication every half second.
_KEPT_PUBLICATIONS: Final = 10_000


class Tally:
    """Counts, only ever rising."""

    def __init__(self) -> None:
        self.streams_total = 0
        """Streams that were opened."""
        self.transfer_bytes_total = 0
        """Bytes of the chunks that were sent."""
        self.transfers_total: Counter[str] = Counter({"none": 0, "delta": 0, "full": 0})
        """Transfers that were begun, by intent."""
        self.nacks_total: Counter[str] = Counter(
            {"digest": 0, "position": 0, "invalid": 0, "guard": 0}
        )
        """Transfers that nodes refused, by reason."""


class Publications:
    """When each of the last revisions was published, on the monotonic clock of the streams."""

    def __init__(self) -> None:
        self._epoch = ""
        self._revisions: list[int] = []
        self._at_s: list[float] = []

    def note(self, position: Position, now_s: float) -> None:
        """Note that `position` is published."""
        if position.config_epoch != self._epoch:
            self._epoch = position.config_epoch
            self._revisions, self._at_s = [], []
        self._revisions.append(position.revision)
        self._at_s.append(now_s)
        if len(self._revisions) > 2 * _KEPT_PUBLICATIONS:
            del self._revisions[:_KEPT_PUBLICATIONS]
            del self._at_s[:_KEPT_PUBLICATIONS]

    def first_after(self, applied: Position) -> float | None:
        """Return when the oldest thing was published that a node at `applied` lacks; None when it lacks nothing.

        The earliest that is known, where it was before this control plane started.
        """
        if not self._revisions:
            return None
        if applied.config_epoch != self._epoch:
            return self._at_s[0]
        index = bisect_right(self._revisions, applied.revision)
        return self._at_s[index] if index < len(self._at_s) else None
