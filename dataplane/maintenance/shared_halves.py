"""Shared halves whose process died: their row in the ledger is that of the other half.

Whoever reaps the other half reports the request, and so does its own process when it is there again.
A half that has no row for long never had another one: its process died between the two admissions.
It was charged when it was reaped, and is given back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from dataplane.limits.operations import Release
from dataplane.maintenance.counter_table import OPERATIONS, parts_of
from dataplane.maintenance.ports import Desk, Ledger

# Longer than the other half waits for its reaper, and its row for a control plane, unless one is away.
ORPHANED_MS: Final = 300_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReapedHalf:
    """A shared half that was reaped: its request, and the keys of its counters."""

    request_id: str
    keys: Sequence[str]


class SharedHalves:
    """Accounts for reaped shared halves under one hash tag."""

    def __init__(self, desk: Desk, ledger: Ledger, orphaned_ms: int = ORPHANED_MS) -> None:
        """Give back what has no row for `orphaned_ms` after it was reaped."""
        self._desk = desk
        self._ledger = ledger
        self._orphaned_ms = orphaned_ms

    async def account_for(self, halves: Sequence[ReapedHalf], now_ms: int) -> list[str]:
        """Return the requests that the ledger has; give back those that it never will.

        The others stay listed. `now_ms` is limiter time.

        Raises:
            LedgerUnavailable, RedisError, OSError: It may be repeated.
        """
        if not halves:
            return []
        known = await self._ledger.known([each.request_id for each in halves])
        unknown = [each for each in halves if each.request_id not in known]
        if unknown:
            await self._give_back(unknown, now_ms)
        return [each.request_id for each in halves if each.request_id in known]

    async def _give_back(self, halves: Sequence[ReapedHalf], now_ms: int) -> None:
        names = [each.request_id for each in halves]
        reaped_at = await self._desk.client.zmscore(self._desk.keyspace.reaped, names)
        orphans = [
            half
            for half, at_ms in zip(halves, reaped_at, strict=True)
            if at_ms is not None and at_ms + self._orphaned_ms <= now_ms
        ]
        for part in parts_of(orphans, OPERATIONS):
            await self._desk.run(*(Release(each.request_id, keys=each.keys) for each in part))
        for each in orphans:
            _log.warning("orphaned_half_given_back", request_id=each.request_id)
