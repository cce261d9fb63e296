"""Waits for nodes: until they refuse a subject, or have applied a change.

A wait knows who is waited for and who is done, wherever they are connected. It is told by a `Fleet` what nodes say.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from controlplane.domain.revocations import (
    AppliedChange,
    AppliedRevocation,
    Propagation,
    Receipt,
)
from controlplane.snapshots.snapshot import Position

# 0.1 s: longer than a healthy disk needs. A node that applied the change itself refuses the subject, and says a little
# later that its disk knows too.
_KEPT_WITHIN_S: Final = 0.1


class Wait:
    """One change that somebody waits for: who has it, since when, and who does not yet."""

    def __init__(
        self, config_epoch: str, revision: int, since_s: float, revocation_id: str = ""
    ) -> None:
        """Begin to wait; with `revocation_id` until nodes refuse a subject, else until they have applied the change."""
        self.config_epoch = config_epoch
        self.revision = revision
        self.revocation_id = revocation_id
        self._since_s = since_s
        self._waiting: set[str] = set()
        self._applied_ms: dict[str, int] = {}
        self._kept: dict[str, bool] = {}
        self._complete = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def missing(self) -> tuple[str, ...]:
        """Who is waited for, by node id."""
        return tuple(sorted(self._waiting))

    def join(self, node_ids: Iterable[str]) -> None:
        """Wait for these nodes too, unless they are done."""
        self._waiting.update(node_id for node_id in node_ids if node_id not in self._applied_ms)
        self._look()

    def leave(self, node_id: str) -> None:
        """Do not wait any more for a node that went away; a receipt still names it, since it may refuse nothing."""
        if not self.revocation_id:
            self._waiting.discard(node_id)
            self._look()

    def note_position(self, node_id: str, applied: Position, now_s: float) -> None:
        """Note where a node stands: it may contain the change."""
        if applied.is_at_least(self.revision, self.config_epoch):
            self._note(node_id, now_s)

    def note_ack(self, node_id: str, *, is_kept: bool, now_s: float) -> None:
        """Note that a node refuses the subject."""
        self._kept[node_id] = is_kept
        self._note(node_id, now_s)

    def _note(self, node_id: str, now_s: float) -> None:
        if node_id in self._waiting:
            self._waiting.discard(node_id)
            self._applied_ms[node_id] = max(0, int((now_s - self._since_s) * 1000))
        self._look()

    def _look(self) -> None:
        if self._waiting:
            self._complete.clear()
            return
        self._complete.set()
        if self._applied_ms.keys() <= self._kept.keys():
            self._settled.set()

    async def until_complete(self, wait_ms: int) -> bool:
        """Wait until nobody is missing, at most so long; say whether that is so. Cancellation ends the wait."""
        self._look()
        if wait_ms > 0:
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._complete.wait()
                    await self._until_settled()
            except TimeoutError:
                pass
        return not self._waiting

    async def _until_settled(self) -> None:
        if not self.revocation_id:
            return
        try:
            async with asyncio.timeout(_KEPT_WITHIN_S):
                await self._settled.wait()
        except TimeoutError:
            pass

    def receipt(self) -> Receipt:
        """Return who refuses the subject by now."""
        applied = tuple(
            AppliedRevocation(node, ms, self._kept.get(node, False))
            for node, ms in sorted(self._applied_ms.items())
        )
        return Receipt(self.revision, applied, self.missing)

    def propagation(self) -> Propagation:
        """Return who has applied the change by now."""
        applied = tuple(AppliedChange(*item) for item in sorted(self._applied_ms.items()))
        return Propagation(self.revision, applied, self.missing)
