"""Applies the transfers of one stream and answers each of them."""

import asyncio
from typing import Final

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control import answers
from dataplane.control.applying import Applier
from dataplane.control.figures import StreamFigures
from dataplane.control.outgoing import Outgoing
from dataplane.control.refused import RefusedTransferError
from dataplane.control.transfers import MALFORMED, IncomingTransfer

_NAMES: Final = {
    pb.NACK_REASON_DIGEST: "digest",
    pb.NACK_REASON_POSITION: "position",
    pb.NACK_REASON_INVALID: "invalid",
    pb.NACK_REASON_GUARD: "guard",
}

_log: Final = structlog.get_logger(__name__)


class Answering:
    """Holds the newest complete transfer until the one before it is in force, or refused."""

    def __init__(self, applier: Applier, outgoing: Outgoing, figures: StreamFigures) -> None:
        """Prepare; answers go to `outgoing`, refusals are counted in `figures`."""
        self._applier = applier
        self._outgoing = outgoing
        self._figures = figures
        # The newest complete transfer, and when it arrived.
        self._ready: asyncio.Queue[tuple[IncomingTransfer, float]] = asyncio.Queue(1)

    def take(self, transfer: IncomingTransfer, arrived_at: float) -> None:
        """Queue a complete transfer, whose last message arrived then; an older one gives way."""
        if not self._ready.empty():
            older, _ = self._ready.get_nowait()
            self._ready.task_done()
            newer = RefusedTransferError(MALFORMED, "a newer one came before it was begun with")
            self.refuse(older.transfer_id, newer)
        self._ready.put_nowait((transfer, arrived_at))

    def refuse(self, transfer_id: int, refused: RefusedTransferError) -> None:
        """Answer that a transfer is refused.

        Raises:
            asyncio.QueueFull: The control plane does not listen to answers.
        """
        name = _NAMES[refused.reason]
        _log.error("config_refused", reason=name, problems=list(refused.problems))
        self._figures.nacks_total[name] += 1
        position = self._applier.holdings.position
        self._outgoing.say(answers.nack(transfer_id, position, refused))

    async def run(self) -> None:
        """Apply and answer what was taken, until cancelled."""
        while True:
            transfer, arrived_at = await self._ready.get()
            try:
                applied = await self._applier.apply(transfer, arrived_at)
            except RefusedTransferError as refused:
                self.refuse(transfer.transfer_id, refused)
            else:
                _log.info(
                    "config_applied",
                    revision=applied.position.revision,
                    quarantined=len(applied.quarantined),
                    apply_ms=applied.apply_ms,
                )
                ack = answers.ack(
                    transfer.transfer_id, applied.position, applied.quarantined, applied.apply_ms
                )
                self._outgoing.say(ack)
            self._ready.task_done()
            # Not held until the next one comes: it may be most of what is in memory.
            del transfer
            await self._applier.tidy()

    async def settled(self) -> None:
        """Return when everything that was taken is answered."""
        await self._ready.join()
