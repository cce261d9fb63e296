"""Coalesces the operations of concurrent requests into few calls of the script.

One call is under way at a time. What arrives meanwhile leaves with the next one; a
lone operation leaves at the next turn of the event loop and waits for nobody.

What happens when a call fails, and so its outcome is unknown:
- an admit is sent once more with the same request id, within its deadline; after that its
  caller is told that limits are unavailable and a release follows in the background. So it ends,
  too, where it is denied while the first attempt may yet take effect: whoever is told of a
  denial may ask again with the same id, and must not meet that release;
- everything else is safe to repeat and waits in the background until Redis is back.

While the counters are cold nothing is sent. Admits fail at once; what settles waits for the new
counter epoch, since before it would be lost in counters that are thrown away.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.availability import Availability
from dataplane.limits.connection import RedisConnection, RedisFailure
from dataplane.limits.counters import Keyspace
from dataplane.limits.crossings import Crossing, crossings_of
from dataplane.limits.operations import (
    Admit,
    Answer,
    Balance,
    Operation,
    Outcome,
    Reply,
    decode,
    encode,
)
from dataplane.limits.patience import Deadline
from dataplane.limits.pending import Deadlines, Pending, Told, Undo
from dataplane.limits.queues import Queues
from dataplane.limits.server_clock import ServerClock

ADMIT_ATTEMPTS: Final = 2
# For so much of the time that its call may take an admit has an effect. The rest is for what the
# clock of Redis, as we reckon it, is ahead: a round trip.
EFFECTIVE_SHARE: Final = 0.8
# A timeout while our own loop was this late says nothing about Redis.
LATE_LOOP_SECONDS: Final = 0.02
# So often Redis is asked and looked at although nobody calls. A server that hangs is noticed after
# this and the breaker's failures: some 1.5 s.
CHECK_SECONDS: Final = 1.0
# How often cold counters are looked at.
COLD_SECONDS: Final = 0.1

_TRY_AGAIN: Final = frozenset({Outcome.EXPIRED, Outcome.COLD, Outcome.STALE})
_HELD: Final = frozenset({Outcome.OK, Outcome.DUPLICATE})

_logger = logging.getLogger(__name__)


def _do_nothing() -> None:
    """Tell nobody."""


def ignore_crossing(_crossing: Crossing) -> None:
    """Tell nobody."""


class Batcher:
    """The queue in front of one connection, and the task that empties it.

    Attributes:
        availability: Whether counters can be asked.
        clock: The clock of Redis, as far as it is known here.
        on_new_epoch: Called from the event loop when the counters are of another epoch than those
            before: what was written besides counters may be lost.
    """

    def __init__(
        self,
        connection: RedisConnection,
        keyspace: Keyspace,
        rebind: Callable[[Admit, int], None],
        on_crossing: Callable[[Crossing], None] = ignore_crossing,
    ) -> None:
        """Prepare; `start` begins to work.

        Args:
            connection: Belongs to the batcher from now on.
            keyspace: Names the keys of the operations.
            rebind: Called with an admit whose periods were stale, and limiter time.
            on_crossing: Called from the event loop with each budget that a settle brought to 80 or
                100 percent.
        """
        self._connection = connection
        self._keyspace = keyspace
        self._rebind = rebind
        self._on_crossing = on_crossing
        self._loop = asyncio.get_running_loop()
        self._queues = Queues()
        self._in_flight: list[Pending] = []
        self._deadlines = Deadlines()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._wants_call = False
        self._wants_look = False
        self.availability = Availability()
        self.clock = ServerClock()
        self.on_new_epoch: Callable[[], None] = _do_nothing
        self._counter_epoch = b""
        self._faults = 0

    async def start(self) -> None:
        """Make the first call, so that the clock is known, and begin to work.

        Without Redis the breaker opens and probes until it answers.
        """
        is_answered = await self._opened() and await self._exchange([])
        if not is_answered and not self.availability.is_cold:
            self.availability.open()
        self._check = self._loop.call_later(CHECK_SECONDS, self._check_up)
        self._task = asyncio.create_task(self._run(), name="limits-batcher")

    def admit(self, operation: Admit) -> asyncio.Future[Answer]:
        """Queue an admit; its future has the answer, or `LimitsUnavailable` after 100 ms without any.

        While Redis answers, the queue moves and its callers wait for their turn, at most
        `MAX_WAITING_ADMITS / MAX_BATCH` calls. A turn of our own loop that was late counts as a
        short one (`patience`).

        Cancelling the future never disturbs the call that carries it; what it reserved
        is released.

        Raises:
            LimitsUnavailable: The breaker is open, the counters are cold, or too many wait already.
        """
        if self._is_closed or not self.availability or not self._queues.has_room_for_admits:
            raise LimitsUnavailable("the counters cannot be asked")
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._queues.append_admit(self._deadlines.watch(operation, future))
        self._wake.set()
        return future

    def undo(self, operation: Admit) -> None:
        """Give back in the background what an admit took whose caller will not be let in."""
        self._queues.append_later(Undo(operation))
        self._wake.set()

    def push(self, operation: Operation) -> None:
        """Queue an operation that nobody waits for; it keeps its order with admits."""
        self._queues.append(Pending(operation, None))
        self._wake.set()

    def push_later(self, operation: Operation) -> None:
        """Queue an operation that gives way to admits and settles."""
        self._queues.append_later(Pending(operation, None))
        self._wake.set()

    def write(self, operation: Operation, on_end: Callable[[bool], None]) -> None:
        """Queue an operation that gives way to others; `on_end` hears whether Redis answered it.

        It waits for as long as Redis is away. It was given up where the queue is full or closed.
        """
        self._queues.append_later(Told(operation, on_end))
        self._wake.set()

    async def ask(self, operation: Operation, deadline_seconds: float) -> Answer:
        """Queue an operation and wait for its answer.

        Raises:
            LimitsUnavailable: There was none within `deadline_seconds`; the operation may
                still take effect.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        # Unlike an admit, a reader is not told by the script that the counters are cold.
        self._wants_look = self._wants_look or isinstance(operation, Balance)
        self._queues.append(Pending(operation, future))
        self._wake.set()
        try:
            async with Deadline(deadline_seconds):
                return await future
        except TimeoutError:
            raise LimitsUnavailable("the counters did not answer in time") from None

    @property
    def queued(self) -> int:
        """The number of operations not yet answered."""
        return len(self._queues) + len(self._in_flight)

    @property
    def dropped(self) -> int:
        """The number of operations given up: for want of room, or because they met a fault."""
        return self._queues.dropped + self._faults

    async def aclose(self, deadline_seconds: float) -> int:
        """Write what is queued, then close; return how many operations were left.

        Admits are refused from now on.
        """
        self._is_closed = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                while self.queued:
                    self._idle.clear()
                    await self._idle.wait()
        if self._check is not None:
            self._check.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._deadlines.close()
        left = [*self._in_flight, *self._queues]
        for pending in left:
            pending.fail("the limiter is closing")
        await self._connection.close()
        return len(left)

    def _check_up(self) -> None:
        """See that Redis is looked at and asked soon: without traffic nobody else would notice."""
        self._check = self._loop.call_later(CHECK_SECONDS, self._check_up)
        self._wants_look = self._wants_call = True
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._ready()
            if self._is_checking_up:
                await self._look_and_call()
            elif await self._opened():
                batch = self._queues.take()
                if batch or self._wants_call or self.availability.breaker.is_open:
                    self._in_flight = batch
                    await self._exchange_or_drop(batch)
                    self._in_flight = []
            if not self.queued:
                self._idle.set()

    @property
    def _is_checking_up(self) -> bool:
        """Tell whether a look and a call are due, and nothing else is."""
        is_due = self._wants_look and self._wants_call
        return is_due and not (self._queues or self.availability.is_cold)

    async def _ready(self) -> None:
        """Return when there is work, when the breaker wants a probe, or to look at cold counters."""
        breaker = self.availability.breaker
        if breaker.is_open:
            await asyncio.sleep((breaker.probe_at_ms - self.availability.now_ms()) / 1000)
        elif self.availability.is_cold:
            await asyncio.sleep(COLD_SECONDS)
        elif not (self._queues or self._wants_call):
            self._wake.clear()
            await self._wake.wait()

    async def _opened(self) -> bool:
        """Connect if need be, look if that is due, and tell whether operations may be sent."""
        # Taken back before it is done: whoever wants one meanwhile gets another. One that fails
        # closes the connection, and opening that looks.
        is_look_due, self._wants_look = self._wants_look, False
        try:
            if is_look_due:
                await self._connection.look()
            else:
                await self._connection.open()
        except Exception as error:
            # Task boundary: also a fault of whoever names the server must not stop the limiter.
            if not isinstance(error, RedisFailure):
                _logger.exception("the server of the counters could not be looked at")
            self._note_failure(error)
            return False
        if self._connection.is_cold:
            self._note_cold()
            return False
        self._note_epoch()
        return True

    async def _look_and_call(self) -> None:
        """Look and make a call without operations, in one exchange of messages."""
        self._wants_look = False
        packed, sent_at = self._encode([]), self._loop.time()
        try:
            reply = decode(await self._connection.look_and_run(*packed))
        except Exception as error:
            # Task boundary, as in `_opened`.
            if not isinstance(error, (*RedisFailure, msgspec.MsgspecError)):
                _logger.exception("the server of the counters could not be looked at")
            self._note_failure(error)
            return
        if self._connection.is_cold:
            self._note_cold()
        else:
            self._note_epoch()
            self._note_reply(reply, sent_at)

    def _note_epoch(self) -> None:
        epoch = self._connection.counter_epoch
        if epoch != self._counter_epoch:
            self._counter_epoch = epoch
            self.on_new_epoch()

    def _note_cold(self) -> None:
        if not self.availability.is_cold:
            _logger.warning("limits unavailable: the counters are cold")
            self._queues.refuse_readers("the counters are being rebuilt")
        self._note_answer(is_cold=True)
        # Looked at again and again. The first call after that sets the clock, and ends the outage.
        self._wants_look = self._wants_call = True

    async def _exchange_or_drop(self, batch: list[Pending]) -> None:
        try:
            await self._exchange(batch)
        except Exception:
            # Task boundary: a fault of ours must neither stop the limiter nor be
            # retried for ever. What was charged is in the ledger.
            _logger.exception("a batch of %d operations was dropped", len(batch))
            self._faults += len(batch)
            for pending in batch:
                pending.fail("internal fault")
                self._queues.undo(pending)

    async def _exchange(self, batch: list[Pending]) -> bool:
        """Make one call and hand out its answers; tell whether Redis answered."""
        packed = self._encode(batch)
        sent_at = self._loop.time()
        try:
            reply = decode(await self._connection.run(*packed))
        except (*RedisFailure, msgspec.MsgspecError) as error:
            self._note_failure(error)
            self._requeue(batch)
            return False
        self._note_reply(reply, sent_at)
        for pending, answer in zip(batch, reply.answers, strict=True):
            if isinstance(pending.operation, Admit):
                self._admitted(pending, pending.operation, answer, reply.server_now_ms)
            else:
                self._finish(pending, answer, reply.now_ms)
        return True

    def _note_reply(self, reply: Reply, sent_at: float) -> None:
        self._deadlines.note_answer()
        self._note_answer(is_cold=False)
        self._wants_call = False
        self.clock.saw(reply, sent_at)

    def _encode(self, batch: list[Pending]) -> tuple[list[str], list[bytes]]:
        for pending in batch:
            pending.attempts += 1
            if isinstance(pending.operation, Admit):
                # Before its call may fail: when the next attempt is answered, this one has no
                # effect any more.
                longest = EFFECTIVE_SHARE * self._connection.timeout_seconds
                not_after = self._loop.time() + min(self._deadlines.left(pending), longest)
                pending.operation.not_after_ms = self.clock.server_ms(not_after)
        return encode([pending.operation for pending in batch], self._keyspace)

    def _admitted(
        self, pending: Pending, operation: Admit, answer: Answer, server_now_ms: int
    ) -> None:
        outcome = answer[0]
        if outcome in _HELD:
            if not pending.answer(answer):
                self._queues.undo(pending)
            return
        if outcome == Outcome.COLD:
            # Somebody emptied Redis under this connection, or its counters were rebuilt meanwhile.
            self._wants_look = self._wants_call = True
        if outcome in _TRY_AGAIN and self._may_retry(pending):
            if outcome == Outcome.STALE:
                self._rebind(operation, self.clock.now_ms(self._loop.time()))
            self._queues.put_back(pending)
            return
        unknown_until_ms = pending.unknown_until_ms
        if outcome == Outcome.DENY and (
            unknown_until_ms is None or server_now_ms > unknown_until_ms
        ):
            # There was no reservation, and an earlier attempt would find that it is too late.
            pending.answer(answer)
            return
        # Whoever was revoked does not ask again, and so does not meet the release of an earlier attempt.
        if not (outcome == Outcome.REVOKED and pending.answer(answer)):
            pending.fail(f"admit ended as {Outcome(outcome).name.lower()}")
        if outcome == Outcome.FAULT:
            _logger.error("admit failed: %s", answer[1])
        if pending.is_unknown or outcome == Outcome.FAULT:
            # An earlier attempt may have taken effect, or may yet.
            self._queues.undo(pending)

    def _finish(self, pending: Pending, answer: Answer, now_ms: int) -> None:
        operation = pending.operation
        if len(answer) > 1 and answer[1]:
            for crossing in crossings_of(operation, answer, now_ms):
                # Not from here: a fault of theirs must not keep others from their answers.
                self._loop.call_soon(self._on_crossing, crossing)
        if answer[0] == Outcome.COLD:
            self._wants_look = self._wants_call = True
        if pending.future is not None or answer[0] != Outcome.FAULT:
            pending.answer(answer)
            return
        # It would fail the same way again; the ledger knows what was spent.
        self._faults += 1
        _logger.error("%s failed: %s", type(operation).__name__, answer[1])
        pending.fail("it met a fault")

    def _requeue(self, batch: list[Pending]) -> None:
        for pending in reversed(batch):
            if not isinstance(pending.operation, Admit):
                if not pending.is_abandoned:
                    self._queues.put_back(pending)
                continue
            pending.unknown_until_ms = pending.operation.not_after_ms
            if self._may_retry(pending):
                self._queues.put_back(pending)
                continue
            pending.fail("the counters did not answer in time")
            self._queues.undo(pending)

    def _may_retry(self, pending: Pending) -> bool:
        return (
            pending.attempts < ADMIT_ATTEMPTS
            and pending.future is not None
            and not pending.future.done()
            and self._deadlines.left(pending) > 0
        )

    def _note_answer(self, is_cold: bool) -> None:
        if self.availability.succeeded(is_cold):
            _logger.info("limits available again")

    def _note_failure(self, error: BaseException) -> None:
        # Until it is known whether Redis is away, it is asked again.
        self._wants_call = True
        is_late = self._connection.late_seconds > LATE_LOOP_SECONDS
        if (self.availability.breaker.is_open or not is_late) and self.availability.failed():
            _logger.warning("limits unavailable: %s: %s", type(error).__name__, error)
