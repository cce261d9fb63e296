"""Takes the transfers of one stream as they arrive, beside everything else that the stream says."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.figures import StreamFigures
from dataplane.control.holdings import Holdings
from dataplane.control.refused import RefusedTransferError
from dataplane.control.sealing import SealingKey
from dataplane.control.slices import rest
from dataplane.control.transfers import MALFORMED, MAX_BYTES, IncomingTransfer

# As much as the largest transfer: a revocation that comes behind its chunks must not wait for them to
# be worked through, and what they hold is kept in any case.
_MAX_WAITING_BYTES: Final = MAX_BYTES
# What the queue itself takes for a message, so that empty ones cannot fill the memory.
_MESSAGE_BYTES: Final = 1_000
_NAMES: Final = {
    pb.TRANSFER_INTENT_NONE: "none",
    pb.TRANSFER_INTENT_DELTA: "delta",
    pb.TRANSFER_INTENT_FULL: "full",
}

_log: Final = structlog.get_logger(__name__)
Refuse = Callable[[int, RefusedTransferError], None]
# A transfer that is complete, and when its last message arrived, `time.monotonic()`.
HandOver = Callable[[IncomingTransfer, float], None]


class Receiving:
    """Reads ahead, a whole transfer at most; chunks are compared with what is held in a task of their own."""

    def __init__(
        self,
        holdings: Holdings,
        sealing_key: SealingKey,
        figures: StreamFigures,
        refuse: Refuse,
        hand_over: HandOver,
    ) -> None:
        """Prepare.

        Args:
            holdings: What is held.
            sealing_key: What secrets are sealed to.
            figures: Where transfers are counted.
            refuse: Called with a transfer that is refused, as soon as that is known.
            hand_over: Called with each complete transfer.
        """
        self._holdings = holdings
        self._sealing_key = sealing_key
        self._figures = figures
        self._refuse = refuse
        self._hand_over = hand_over
        self._waiting: asyncio.Queue[tuple[pb.StreamConfigResponse, int, float]] = asyncio.Queue()
        self._waiting_bytes = 0
        self._has_room = asyncio.Event()
        self._incoming: IncomingTransfer | None = None
        # The one that began last, also when it is refused: the rest of it may be on its way.
        self._begun: int | None = None

    async def take(self, message: pb.StreamConfigResponse) -> None:
        """Queue a part of a transfer; return when there is room for another."""
        size_bytes = message.ByteSize() + _MESSAGE_BYTES
        self._waiting_bytes += size_bytes
        self._waiting.put_nowait((message, size_bytes, time.monotonic()))
        while self._waiting_bytes > _MAX_WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        # To read a chunk takes as long as a slice; what has arrived already is not read in one go.
        await rest()

    async def run(self) -> None:
        """Work through what was taken, until cancelled."""
        while True:
            message, size_bytes, arrived_at = await self._waiting.get()
            match message.WhichOneof("message"):
                case "transfer_begin":
                    self._begin(message.transfer_begin)
                case "transfer_chunk":
                    await self._add(message.transfer_chunk)
                case _:
                    self._end(message.transfer_end, arrived_at)
            self._waiting_bytes -= size_bytes
            self._has_room.set()

    def _begin(self, begin: pb.TransferBegin) -> None:
        self._begun, self._incoming = begin.transfer_id, None
        try:
            self._incoming = IncomingTransfer(begin, self._sealing_key)
        except RefusedTransferError as refused:
            self._refuse(begin.transfer_id, refused)

    async def _add(self, chunk: pb.TransferChunk) -> None:
        self._figures.transfer_bytes_total += chunk.ByteSize()
        incoming = self._incoming
        if incoming is None or chunk.transfer_id != incoming.transfer_id:
            # Of a transfer that is void or refused.
            return
        try:
            await incoming.add(chunk, self._holdings)
        except RefusedTransferError as refused:
            self._incoming = None
            self._refuse(chunk.transfer_id, refused)

    def _end(self, end: pb.TransferEnd, arrived_at: float) -> None:
        incoming = self._incoming
        if incoming is None or end.transfer_id != incoming.transfer_id:
            if end.transfer_id != self._begun:
                never = RefusedTransferError(MALFORMED, "it never began, or is void")
                self._refuse(end.transfer_id, never)
            return
        self._incoming = None
        try:
            incoming.check_complete(end)
        except RefusedTransferError as refused:
            self._refuse(end.transfer_id, refused)
            return
        self._figures.transfers_total[_NAMES[incoming.intent]] += 1
        self._hand_over(incoming, arrived_at)
