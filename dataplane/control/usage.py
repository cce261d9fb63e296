"""Delivers what requests used to the ledger, at least once each, from the spool."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from dataplane.control.channels import channel_to, check_address
from dataplane.control.sightings import MAX_TAKEN, Sighting, Sightings, message_from
from dataplane.control.spool import Spool
from dataplane.control.spool_recovery import Recovered
from dataplane.control.usage_records import record_from
from dataplane.domain.calls import UsageEvent

MAX_BATCH_RECORDS: Final = 500
# Well under what a receiver takes (4 MiB), whatever callers put into their texts.
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
MAX_BATCHES_ON_THE_WAY: Final = 4
# What waits beyond this is read back from the spool; about 2 KB each.
MAX_EVENTS_IN_MEMORY: Final = 10_000

_BACK_OFF_CAP_S: Final = 5.0

_log: Final = structlog.get_logger(__name__)
_Call = grpc.aio.StreamStreamCall[pb.ReportUsageRequest, pb.ReportUsageResponse]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the reporter waits, in seconds.

    `gathering` is for company before a batch is sent, `acknowledgement` without progress before a
    connection is given up, `back_off` at most before the first attempt that follows a failure,
    `sightings` between two deliveries of the devices that called.
    """

    gathering: float = 0.05
    acknowledgement: float = 10.0
    back_off: float = 0.1
    sightings: float = 10.0


@dataclass(frozen=True, slots=True)
class _Batch:
    request_ids: tuple[str, ...]
    records: tuple[pb.UsageRecord, ...] = field(repr=False)


# What is on the way where sightings travel alone.
_NO_RECORDS: Final = _Batch((), ())


class UsageReporter:
    """The `Reporter` of a process: remembers in the spool, delivers in the background.

    Sightings of devices travel along, or alone where there are no records; they are taken from
    `sightings`, sent once and nowhere remembered.

    What it is told is plain calls on the event loop that raise nothing. It has the spool that it
    is given: `aclose` closes it.
    """

    def __init__(
        self,
        spool: Spool,
        recovered: Recovered,
        addresses: Sequence[str],
        node_token: str,
        node_id: str,
        pace: Pace | None = None,
        max_events_in_memory: int = MAX_EVENTS_IN_MEMORY,
        sightings: Sightings | None = None,
    ) -> None:
        """Take over what earlier processes left.

        Raises:
            ValueError: An address is not on loopback, or there is none.
        """
        if not addresses:
            raise ValueError("usage needs the address of a control plane")
        for address in addresses:
            check_address(address)
        self._spool = spool
        self._addresses = tuple(addresses)
        self._metadata = (("authorization", f"Bearer {node_token}"),)
        self._node_id = node_id
        self._pace = pace or Pace()
        self._max_in_memory = max_events_in_memory
        self._sightings = Sightings() if sightings is None else sightings
        self._due_sightings = 0
        self._sightings_timer: asyncio.TimerHandle | None = None
        self._in_memory = 0
        # None: the event is in the spool only.
        self._waiting: dict[str, UsageEvent | None] = dict.fromkeys(recovered.closes)
        self._again: deque[_Batch] = deque()
        self._on_the_way: deque[tuple[int, _Batch]] = deque()
        self._suspects = 0
        self._last_batch_id = 0
        self._progress_at = 0.0
        self._turn = 0
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._has_work = asyncio.Event()
        self._has_batch = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_idle = asyncio.Event()
        for event in recovered.opens:
            # Written as ABANDONED, charged with what it reserved: nobody knows better now.
            self.record_close(event)
        self._spool.flush()
        self._note_waiting()

    @property
    def is_full(self) -> bool:
        """Return whether no further request may begin."""
        return self._spool.is_full

    @property
    def unreported_records(self) -> int:
        """Return the requests that are over and not known to be in the ledger."""
        batches = [batch for _, batch in self._on_the_way] + list(self._again)
        return len(self._waiting) + sum(len(batch.request_ids) for batch in batches)

    def record_open(self, event: UsageEvent) -> None:
        """Remember that a request is about to go upstream."""
        self._spool.append_open(event)

    def record_close(self, event: UsageEvent) -> None:
        """Remember how it ended, and deliver it."""
        self._spool.append_close(event)
        fits = self._in_memory < self._max_in_memory
        if fits and event.request_id not in self._waiting:
            self._in_memory += 1
            self._waiting[event.request_id] = event
        else:
            self._waiting.setdefault(event.request_id, None)
        self._note_waiting()

    def flush(self) -> None:
        """Write what was recorded; a process that dies after this has lost nothing of it."""
        self._spool.flush()

    def start(self) -> None:
        """Begin to deliver; must be called on the event loop, once."""
        self._task = asyncio.create_task(self._run(), name="report-usage")
        self._offer_sightings()

    async def aclose(self, deadline_seconds: float) -> None:
        """Deliver for so long, leave the rest on disk, and close the spool."""
        try:
            if self._task is not None:
                self._offer_sightings()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(deadline_seconds):
                        await self._is_idle.wait()
                self._task.cancel()
                await asyncio.wait({self._task})
        finally:
            if self._sightings_timer is not None:
                self._sightings_timer.cancel()
            if self.unreported_records:
                _log.warning("usage_left_in_spool", records=self.unreported_records)
            await self._spool.aclose()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            address = self._addresses[self._turn % len(self._addresses)]
            try:
                await self._deliver_to(address)
            except Exception:
                # The boundary of this task: whatever went wrong, usage must go on being delivered.
                _log.exception("usage_delivery_failed", address=address)
            self._turn += 1
            self._failures += 1
            ceiling = min(_BACK_OFF_CAP_S, self._pace.back_off * 2 ** min(self._failures - 1, 16))
            await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - spreads, hides nothing

    async def _deliver_to(self, address: str) -> None:
        """Hold one stream until it ends; then all that is not acknowledged is to be sent again."""
        async with channel_to(address) as channel:
            call: _Call = pb_grpc.UsageServiceStub(channel).ReportUsage(metadata=self._metadata)
            tasks = {
                asyncio.create_task(work(call)) for work in (self._send, self._hear, self._watch)
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await self._note_end(call, done, address)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                call.cancel()
                self._send_again()

    async def _note_end(self, call: _Call, done: set[asyncio.Task[None]], address: str) -> None:
        if call.done():
            code, detail = await call.code(), await call.details()
        else:
            code, detail = None, "; ".join(repr(task.exception()) for task in done)
        _log.warning("usage_stream_ended", address=address, code=code and code.name, detail=detail)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            self._find_refused()

    def _find_refused(self) -> None:
        """A record on the way can never be stored: put it aside, or send them singly to find it."""
        if self._suspects and self._on_the_way:
            _, batch = self._on_the_way.popleft()
            self._suspects -= 1
            self._spool.refuse(batch.request_ids[0])
            self._note_waiting()
            return
        self._suspects = sum(len(batch.request_ids) for _, batch in self._on_the_way)

    def _send_again(self) -> None:
        batches = [batch for _, batch in self._on_the_way if batch.request_ids]
        batches += self._again
        self._on_the_way.clear()
        if self._suspects:
            batches = [
                _Batch((request_id,), (record,))
                for batch in batches
                for request_id, record in zip(batch.request_ids, batch.records, strict=True)
            ]
        self._again = deque(batches)
        self._note_waiting()

    async def _send(self, call: _Call) -> None:
        while True:
            await self._gather()
            limit = 1 if self._suspects else MAX_BATCHES_ON_THE_WAY
            while len(self._on_the_way) >= limit:
                self._has_room.clear()
                await self._has_room.wait()  # `_watch` ends it
            batch = await self._next_batch()
            sightings = self._next_sightings()
            if batch is None and not sightings:
                self._note_waiting()
                continue
            batch = batch or _NO_RECORDS
            self._last_batch_id += 1
            if not self._on_the_way:
                self._progress_at = asyncio.get_running_loop().time()
            self._on_the_way.append((self._last_batch_id, batch))
            self._note_waiting()
            await call.write(
                pb.ReportUsageRequest(
                    batch_id=self._last_batch_id,
                    node_id=self._node_id,
                    records=batch.records,
                    sightings=map(message_from, sightings),
                )
            )

    async def _gather(self) -> None:
        """Wait for something to send, and a moment for company."""
        await self._has_work.wait()
        if not self._again and not self._has_batch.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.gathering):
                    await self._has_batch.wait()

    async def _next_batch(self) -> _Batch | None:
        """Take the next batch; None when what was next turned out to be unreadable.

        Nothing waits between taking and returning: a batch is always somewhere.
        """
        if self._again:
            return self._again.popleft()
        head = dict(islice(self._waiting.items(), MAX_BATCH_RECORDS))
        on_disk = [request_id for request_id, event in head.items() if event is None]
        read = (
            {event.request_id: event for event in await self._spool.read_closes(on_disk)}
            if on_disk
            else {}
        )
        request_ids: list[str] = []
        records: list[pb.UsageRecord] = []
        size = 0
        for request_id, event in head.items():
            if event is None and request_id not in read:
                del self._waiting[request_id]
                continue
            record = record_from(event or read[request_id])
            size += record.ByteSize()
            if records and size > MAX_BATCH_BYTES:
                break
            del self._waiting[request_id]
            self._in_memory -= event is not None
            request_ids.append(request_id)
            records.append(record)
        return _Batch(tuple(request_ids), tuple(records)) if records else None

    def _offer_sightings(self) -> None:
        """See that what was noted so far is delivered, and come again in a while."""
        if self._sightings_timer is not None:
            self._sightings_timer.cancel()
        # Counted: what is noted during the delivery waits for the next one.
        self._due_sightings = len(self._sightings)
        self._note_waiting()
        loop = asyncio.get_running_loop()
        self._sightings_timer = loop.call_later(self._pace.sightings, self._offer_sightings)

    def _next_sightings(self) -> list[Sighting]:
        """Take the sightings that go with the next batch.

        None while a record is looked for that can never be stored: a batch is that record then.
        """
        if not self._due_sightings or self._suspects:
            return []
        taken = self._sightings.take(min(self._due_sightings, MAX_TAKEN))
        self._due_sightings = self._due_sightings - len(taken) if taken else 0
        return taken

    async def _hear(self, call: _Call) -> None:
        while isinstance(response := await call.read(), pb.ReportUsageResponse):
            if not self._on_the_way or response.batch_id != self._on_the_way[0][0]:
                _log.error("usage_acknowledgement_unexpected", batch_id=response.batch_id)
                return
            _, batch = self._on_the_way.popleft()
            self._spool.acknowledge(batch.request_ids)
            self._progress_at = asyncio.get_running_loop().time()
            self._failures = 0
            self._suspects = max(0, self._suspects - len(batch.request_ids))
            self._has_room.set()
            self._note_waiting()

    async def _watch(self, _call: _Call) -> None:
        """Return when batches are on the way and nothing was acknowledged for too long."""
        patience, clock = self._pace.acknowledgement, asyncio.get_running_loop().time
        while not self._on_the_way or clock() < self._progress_at + patience:
            is_busy = bool(self._on_the_way)
            left = self._progress_at + patience - clock() if is_busy else patience
            await asyncio.sleep(max(left, 0.001))

    def _note_waiting(self) -> None:
        has_sightings = self._due_sightings > 0 and not self._suspects
        has_work = bool(self._waiting or self._again or has_sightings)
        if has_work:
            self._has_work.set()
            self._is_idle.clear()
        else:
            self._has_work.clear()
            if not self._on_the_way:
                self._is_idle.set()
        if len(self._waiting) >= MAX_BATCH_RECORDS:
            self._has_batch.set()
        else:
            self._has_batch.clear()
