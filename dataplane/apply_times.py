"""How long transfers take to be put in force, seen from beside the stream."""

from typing import Final, Protocol

from dataplane.changes import Changes
from dataplane.domain.histograms import Buckets

# Changes wake it; this only bounds the wait.
_PATIENCE_SECONDS: Final = 60.0


class LastApply(Protocol):
    """What the stream tells of the last transfer that it put in force."""

    @property
    def applied_at_ms(self) -> int:
        """When that was, Unix milliseconds; 0: none was."""
        ...

    @property
    def apply_ms(self) -> int:
        """How long it took."""
        ...


async def measure_applies(last: LastApply, changes: Changes, buckets: Buckets) -> None:
    """Count each transfer that is put in force, until cancelled.

    `changes` is noted by the stream whenever it puts one in force, and by others. Two that are in force within the same
    millisecond after taking equally long count as one.
    """
    seen = (last.applied_at_ms, last.apply_ms)
    while True:
        number = changes.number
        now = (last.applied_at_ms, last.apply_ms)
        if now != seen and now[0]:
            seen = now
            buckets.observe(last.apply_ms / 1000)
        await changes.after(number, _PATIENCE_SECONDS)
