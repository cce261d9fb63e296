"""Delivers what requests used to the ledger, at least once each, from the spool."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from dataplane.control.abandoned import deliver_alone
from dataplane.control.backlog import Backlog, Batch
from dataplane.control.channels import LOOPBACK, Channels, credentials_of
from dataplane.control.counter_messages import budget_event_to_proto
from dataplane.control.sightings import MAX_TAKEN, Sighting, Sightings, message_from
from dataplane.control.spool import Spool
from dataplane.control.spool_recovery import Recovered
from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import BudgetEvent

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

    gathering: float = 0.1
    acknowledgement: float = 10.0
    back_off: float = 0.1
    sightings: float = 10.0


class UsageReporter:
    """The `Reporter` of a process: remembers in the spool, delivers in the background.

    Sightings of devices travel along, or alone where there are no records; they are taken from
    `sightings`, sent once and nowhere remembered. Budget events travel likewise, until they are
    acknowledged.

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
        channels: Channels = LOOPBACK,
    ) -> None:
        """Take over what earlier processes left.

        Raises:
            ValueError: An address cannot be used, or there is none.
        """
        if not addresses:
            raise ValueError("usage needs the address of a control plane")
        for address in addresses:
            channels.check(address)
        self._spool = spool
        self._addresses = tuple(addresses)
        self._channels = channels
        self._metadata = credentials_of(node_token)
        self._node_id = node_id
        self._pace = pace or Pace()
        self._backlog = Backlog(spool, recovered, max_events_in_memory)
        self._sightings = Sightings() if sightings is None else sightings
        self._due_sightings = 0
        self._sightings_timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._last_batch_id = 0
        self._progress_at = 0.0
        self._turn = 0
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._has_work = asyncio.Event()
        self._has_batch = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_drained = asyncio.Event()
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
        return self._backlog.unreported_records

    @property
    def oldest_unreported_ms(self) -> int | None:
        """Return when the oldest request began that is not known to be in the ledger.

        Unix milliseconds; requests in flight count, too. None when there is none.
        """
        return self._backlog.oldest_began_at_ms

    def record_open(self, event: UsageEvent) -> None:
        """Remember that a request is about to go upstream."""
        self._spool.append_open(event)
        self._backlog.begin(event.request_id)

    def record_close(self, event: UsageEvent) -> None:
        """Remember how it ended, and deliver it."""
        self._spool.append_close(event)
        self._backlog.add(event)
        self._note_waiting()

    def note_budget_event(self, event: BudgetEvent) -> None:
        """Deliver that a budget was used to 80 or 100 percent, once per process.

        It is in memory only: whoever compares the counters tells of it again.
        """
        self._backlog.budget_events.note(event)
        self._note_waiting()

    def pause(self) -> None:
        """Send no new batches until `resume`; what is on the way may still be acknowledged."""
        self._is_paused = True
        self._note_waiting()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._is_paused = False
        self._note_waiting()

    async def drained(self, deadline_seconds: float) -> bool:
        """Wait until nothing is on the way; only sensible after `pause`.

        Returns:
            Whether nothing is. Of a stream that was lost meanwhile nobody knows what the ledger
            took: its requests are not acknowledged.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self._is_drained.wait()
        return self._is_drained.is_set()

    def unacknowledged(self) -> AsyncIterator[list[UsageEvent]]:
        """Return the events of all requests that are over and not known to be in the ledger.

        They are those of the moment of this call, also those that only the spool has, read in
        batches of at most 500. What is acknowledged before it is read is left out.

        Raises:
            OSError: While it is read: the disk cannot be read now.
        """
        return self._backlog.unacknowledged()

    async def deliver_abandoned(
        self, events: Sequence[UsageEvent], deadline_seconds: float
    ) -> tuple[str, ...]:
        """Deliver events of requests whose process died, and wait until the ledger has them.

        They take a stream of their own and neither the spool nor what waits here; it may be done
        again, also after an unknown outcome.

        Returns:
            The requests, usually none, that the ledger never takes; the others are in it.

        Raises:
            LedgerUnavailable: Not all of them are known to be in it.
        """
        turn = self._turn % len(self._addresses)
        in_turn = self._addresses[turn:] + self._addresses[:turn]
        return await deliver_alone(
            in_turn, self._metadata, self._node_id, events, deadline_seconds, self._channels
        )

    def flush(self) -> None:
        """Write what was recorded; a process that dies after this has lost nothing of it."""
        self._spool.flush()

    def start(self) -> None:
        """Begin to deliver; must be called on the event loop, once."""
        self._task = asyncio.create_task(self._run(), name="report-usage")
        self._offer_sightings()

    async def delivered(self, deadline_seconds: float) -> bool:
        """Wait until the ledger has everything; return whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self._is_idle.wait()
        return self._is_idle.is_set()

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
        async with self._channels.to(address) as channel:
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
                self._backlog.send_again()
                self._note_waiting()

    async def _note_end(self, call: _Call, done: set[asyncio.Task[None]], address: str) -> None:
        if call.done():
            code, detail = await call.code(), await call.details()
        else:
            code, detail = None, "; ".join(repr(task.exception()) for task in done)
        _log.warning("usage_stream_ended", address=address, code=code and code.name, detail=detail)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            self._backlog.find_refused()
            self._note_waiting()

    async def _send(self, call: _Call) -> None:
        backlog = self._backlog
        while True:
            await self._gather()
            limit = 1 if backlog.suspects else MAX_BATCHES_ON_THE_WAY
            while len(backlog.on_the_way) >= limit:
                self._has_room.clear()
                await self._has_room.wait()  # `_watch` ends it
            batch = await backlog.next_batch()
            if self._is_paused:
                if batch is not None:
                    backlog.put_back(batch)
                continue
            sightings = self._next_sightings()
            if batch is None and not sightings:
                self._note_waiting()
                continue
            batch = batch or Batch()
            self._last_batch_id += 1
            if not backlog.on_the_way:
                self._progress_at = asyncio.get_running_loop().time()
            backlog.note_sent(self._last_batch_id, batch)
            self._note_waiting()
            await call.write(
                pb.ReportUsageRequest(
                    batch_id=self._last_batch_id,
                    node_id=self._node_id,
                    records=batch.records,
                    sightings=map(message_from, sightings),
                    budget_events=map(budget_event_to_proto, batch.budget_events),
                )
            )

    async def _gather(self) -> None:
        """Wait for something to send, and a moment for company."""
        await self._has_work.wait()
        if not self._has_batch.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.gathering):
                    await self._has_batch.wait()

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
        if not self._due_sightings or self._backlog.suspects:
            return []
        taken = self._sightings.take(min(self._due_sightings, MAX_TAKEN))
        self._due_sightings = self._due_sightings - len(taken) if taken else 0
        return taken

    async def _hear(self, call: _Call) -> None:
        while isinstance(response := await call.read(), pb.ReportUsageResponse):
            if not self._backlog.acknowledge(response.batch_id):
                _log.error("usage_acknowledgement_unexpected", batch_id=response.batch_id)
                return
            self._progress_at = asyncio.get_running_loop().time()
            self._failures = 0
            self._has_room.set()
            self._note_waiting()

    async def _watch(self, _call: _Call) -> None:
        """Return when batches are on the way and nothing was acknowledged for too long."""
        patience, clock = self._pace.acknowledgement, asyncio.get_running_loop().time
        on_the_way = self._backlog.on_the_way
        while not on_the_way or clock() < self._progress_at + patience:
            left = self._progress_at + patience - clock() if on_the_way else patience
            await asyncio.sleep(max(left, 0.001))

    def _note_waiting(self) -> None:
        backlog = self._backlog
        has_sightings = self._due_sightings > 0 and not backlog.suspects
        has_work = not self._is_paused and (backlog.has_batch or has_sightings)
        is_drained = not backlog.on_the_way
        _set_to(self._has_work, has_work)
        _set_to(self._has_batch, backlog.has_full_batch)
        _set_to(self._is_drained, is_drained)
        _set_to(self._is_idle, is_drained and not has_work)


def _set_to(event: asyncio.Event, is_set: bool) -> None:
    if is_set:
        event.set()
    else:
        event.clear()
