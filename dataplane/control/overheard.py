"""Revocations that this node hears of by another way than its stream, which may be cut."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from dataplane.control.current import CurrentSnapshot
from dataplane.control.kept import KeptRevocation
from dataplane.control.revoking import RevocationKeeper
from dataplane.domain.revocations import Revocation

_log: Final = structlog.get_logger(__name__)


class Overheard:
    """Puts them in force at once, and sees to it that a restart knows them: nobody waits for an answer."""

    def __init__(
        self,
        current: CurrentSnapshot,
        keeper: RevocationKeeper | None,
        clock_ms: Callable[[], int],
    ) -> None:
        """Begin with none; without a keeper nothing is kept. `clock_ms` returns Unix milliseconds."""
        self._current = current
        self._keeper = keeper
        self._clock_ms = clock_ms
        # By what is revoked: as many as call at the same time hear of it at the same time.
        self._keeping: dict[Revocation, asyncio.Task[None]] = {}

    def take(self, revocation: Revocation) -> None:
        """Refuse its subject from now on; it is called on the event loop, perhaps many times."""
        self._current.revoke(
            revocation.subject,
            revocation.config_epoch,
            revocation.revision,
            terminates=revocation.terminates,
        )
        if self._keeper is not None and revocation not in self._keeping:
            keeping = self._keep(self._keeper, revocation)
            task = asyncio.create_task(keeping, name="keep-overheard")
            self._keeping[revocation] = task
            task.add_done_callback(lambda _: self._keeping.pop(revocation))

    async def _keep(self, keeper: RevocationKeeper, revocation: Revocation) -> None:
        kept = KeptRevocation(
            revocation.kind,
            revocation.subject_id,
            revocation.organization_id,
            revocation.config_epoch,
            revocation.revision,
            self._clock_ms(),
        )
        try:
            is_kept = await keeper.keep_revocation(kept)
        except Exception:
            # The boundary to the disk: it is in force in memory, and Redis goes on having it.
            _log.exception("revocation_keeping_failed")
            return
        if not is_kept:
            _log.error("revocations_not_kept", count=1)
