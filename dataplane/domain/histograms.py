"""How often something took how long: counts in buckets, plain numbers that a metric shows."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# From a change of one key to the first configuration of a large service.
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Buckets:
    """Counts durations by upper bounds; one owner writes, anybody reads.

    Attributes:
        bounds: Upper bounds in seconds, each included, rising.
        counts: How many were in each bucket alone; the last holds what is above every bound.
        sum_seconds: All of them together.
    """

    __slots__ = ("bounds", "counts", "sum_seconds")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """Begin with nothing."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; a clock that went back counts as nothing."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_seconds += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return how many lasted at most as long as each bound, by the bound as text; the last is `+Inf`."""
        rows, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            rows.append((bound, float(below)))
        return rows
