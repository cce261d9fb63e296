"""What a node says of itself, every few seconds and whenever somebody waits for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tollkeeper.common.v1 import errors_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.changes import Changes
from dataplane.control.transfers import position_to_proto
from dataplane.domain.snapshot import Position


@dataclass(frozen=True, slots=True)
class Condition:
    """How a node is; each is asked for every heartbeat.

    Attributes:
        unreported_records: Usage records that are not yet acknowledged.
        oldest_unreported_ms: When the oldest request began, Unix milliseconds, that is not known to be
            in the ledger; None when there is none.
        are_limits_available: Whether counters can be asked.
        maintains_counters: Whether this node holds their maintenance lease.
    """

    unreported_records: Callable[[], int] = lambda: 0
    oldest_unreported_ms: Callable[[], int | None] = lambda: None
    are_limits_available: Callable[[], bool] = lambda: True
    maintains_counters: Callable[[], bool] = lambda: False

    def heartbeat(self, position: Position, *, is_serving: bool) -> pb.StreamConfigRequest:
        """Return a heartbeat of a node that stands at `position`."""
        beat = pb.Heartbeat(
            position=position_to_proto(position),
            unreported_records=self.unreported_records(),
            limits_unavailable=not self.are_limits_available(),
            maintains_counters=self.maintains_counters(),
        )
        if not is_serving:
            beat.not_ready = errors_pb2.ERROR_REASON_CONFIGURATION_UNAVAILABLE
        oldest_ms = self.oldest_unreported_ms()
        if oldest_ms is not None:
            beat.oldest_unreported_at.FromMilliseconds(oldest_ms)
        return pb.StreamConfigRequest(heartbeat=beat)

    async def until_next(self, changes: Changes, seconds: float) -> None:
        """Wait for the next heartbeat; what an administrator waits for is told at once."""
        told = self._told()
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0 and self._told() == told:
            await changes.after(changes.number, left)

    def _told(self) -> tuple[bool, bool]:
        return self.maintains_counters(), self.are_limits_available()
