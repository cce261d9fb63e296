"""Coalesces the operations of concurrent requests into few calls of the script.

One call is under way at a time. What arrives meanwhile leaves with the next one; a
lone operation leaves at the next turn of the event loop and waits for nobody.

What happens when a call fails, and so its outcome is unknown:
- an admit is sent once more with the same request id, within its deadline; after that its
  caller is told that limits are unavailable and a release follows in the background;
- everything else is safe to repeat and waits in the background until Redis is back.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from dataplane.domain.breaker import REDIS_RULE, Breaker, after_failure, after_success, opened
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.connection import RedisConnection, RedisFailure
from dataplane.limits.counters import Keyspace
from dataplane.limits.operations import (
    Admit,
    Answer,
    Operation,
    Outcome,
    Release,
    decode,
    encode,
)
from dataplane.limits.patience import TICK_SECONDS, AttentiveClock
from dataplane.limits.pending import Pending
from dataplane.limits.server_clock import ServerClock

# A call of 64 admits of 13 layers keeps the server for 2 to 3 ms.
MAX_BATCH: Final = 64
# Of a full batch this many places are for the background, so that neither starves.
BACKGROUND_SHARE: Final = 16
# How long a caller waits while Redis answers nobody, retry included.
ADMIT_SECONDS: Final = 0.1
ADMIT_ATTEMPTS: Final = 2
MAX_WAITING_ADMITS: Final = 10_000
MAX_QUEUED: Final = 100_000
# A timeout while our own loop was this late says nothing about Redis.
LATE_LOOP_SECONDS: Final = 0.02

_TRY_AGAIN: Final = frozenset({Outcome.EXPIRED, Outcome.COLD, Outcome.STALE})
_HELD: Final = frozenset({Outcome.OK, Outcome.DUPLICATE})

_logger = logging.getLogger(__name__)


class Batcher:
    """The queue in front of one connection, and the task that empties it."""

    def __init__(
        self,
        connection: RedisConnection,
        keyspace: Keyspace,
        rebind: Callable[[Admit, int], None],
    ) -> None:
        """Prepare; `start` begins to work.

        Args:
            connection: Belongs to the batcher from now on.
            keyspace: Names the keys of the operations.
            rebind: Called with an admit whose periods were stale, and limiter time.
        """
        self._connection = connection
        self._keyspace = keyspace
        self._rebind = rebind
        self._loop = asyncio.get_running_loop()
        self._first: deque[Pending] = deque()
        self._background: deque[Pending] = deque()
        self._in_flight: list[Pending] = []
        self._deadlines: deque[Pending] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._attention = AttentiveClock()
        # Until then nobody has waited too long: Redis has just answered.
        self._patient_until = 0.0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._wants_call = False
        self.breaker = Breaker(rule=REDIS_RULE)
        self.clock = ServerClock()
        self.dropped = 0

    async def start(self) -> None:
        """Make the first call, so that the clock is known, and begin to work.

        Without Redis the breaker opens and probes until it answers.
        """
        if not await self._exchange([]):
            self.breaker = opened(self.breaker, self._now_ms())
        self._task = asyncio.create_task(self._run(), name="limits-batcher")

    def admit(self, operation: Admit) -> asyncio.Future[Answer]:
        """Queue an admit; its future has the answer, or `LimitsUnavailable` after 100 ms without any.

        While Redis answers, the queue moves and its callers wait for their turn, at most
        `MAX_WAITING_ADMITS / MAX_BATCH` calls. A turn of our own loop that was late counts as a
        short one (`patience`).

        Cancelling the future never disturbs the call that carries it; what it reserved
        is released.

        Raises:
            LimitsUnavailable: The breaker is open, or too many wait already.
        """
        if self._is_closed or self.breaker.is_open or len(self._first) >= MAX_WAITING_ADMITS:
            raise LimitsUnavailable("the counters cannot be reached")
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._alarm is None:
            self._attention.tick()
            self._alarm = self._loop.call_later(TICK_SECONDS, self._expire)
        pending = Pending(operation, future, self._attention.seconds() + ADMIT_SECONDS)
        self._deadlines.append(pending)
        self._first.append(pending)
        self._wake.set()
        return future

    def push(self, operation: Operation) -> None:
        """Queue an operation that nobody waits for; it keeps its order with admits."""
        self._append(self._first, Pending(operation, None, 0.0))

    def push_later(self, operation: Operation) -> None:
        """Queue an operation that gives way to admits and settles."""
        self._append(self._background, Pending(operation, None, 0.0))

    async def ask(self, operation: Operation, deadline_seconds: float) -> Answer:
        """Queue an operation and wait for its answer.

        Raises:
            LimitsUnavailable: There was none within `deadline_seconds`; the operation may
                still take effect.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._append(self._first, Pending(operation, future, 0.0))
        try:
            async with asyncio.timeout(deadline_seconds):
                return await future
        except TimeoutError:
            raise LimitsUnavailable("the counters did not answer in time") from None

    def poke(self) -> None:
        """See that a call is made soon, be it empty: it shows whether Redis answers."""
        self._wants_call = True
        self._wake.set()

    @property
    def queued(self) -> int:
        """The number of operations not yet answered."""
        return len(self._first) + len(self._background) + len(self._in_flight)

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
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._alarm is not None:
            self._alarm.cancel()
        left = [*self._in_flight, *self._first, *self._background]
        for pending in left:
            pending.fail("the limiter is closing")
        await self._connection.close()
        return len(left)

    def _append(self, queue: deque[Pending], pending: Pending) -> None:
        if len(self._first) + len(self._background) >= MAX_QUEUED:
            # The ledger has the request; reconciling it raises the counter.
            self.dropped += 1
            pending.fail("too many operations wait for Redis")
            return
        queue.append(pending)
        self._wake.set()

    def _expire(self) -> None:
        """Fail the admits whose callers have waited long enough; deadlines are in order."""
        self._attention.tick()
        self._alarm = None
        while self._deadlines:
            pending = self._deadlines[0]
            if pending.future is not None and not pending.future.done():
                if self._left(pending) > 0:
                    self._alarm = self._loop.call_later(TICK_SECONDS, self._expire)
                    return
                pending.fail("the counters did not answer in time")
            self._deadlines.popleft()

    def _left(self, pending: Pending) -> float:
        """Return for how many seconds an admit's caller goes on waiting."""
        return max(pending.deadline, self._patient_until) - self._attention.seconds()

    async def _run(self) -> None:
        while True:
            await self._ready()
            batch = self._take()
            if batch or self._wants_call or self.breaker.is_open:
                self._wants_call = False
                self._in_flight = batch
                await self._exchange_or_drop(batch)
                self._in_flight = []
            if not self.queued:
                self._idle.set()

    async def _ready(self) -> None:
        """Return when there is work, or when the breaker wants a probe."""
        if self.breaker.is_open:
            await asyncio.sleep((self.breaker.probe_at_ms - self._now_ms()) / 1000)
            return
        if not (self._first or self._background or self._wants_call):
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> list[Pending]:
        """Return the next batch: first come, first served, with a share for the background."""
        share = max(MAX_BATCH - len(self._first), BACKGROUND_SHARE)
        batch: list[Pending] = []
        while self._background and len(batch) < share:
            batch.append(self._background.popleft())
        # After the background: a settle that waits there was queued earlier.
        while self._first and len(batch) < MAX_BATCH:
            pending = self._first.popleft()
            if pending.future is None or not pending.future.done():
                batch.append(pending)
            elif pending.is_unknown:
                self._release(pending)
        return batch

    async def _exchange_or_drop(self, batch: list[Pending]) -> None:
        try:
            await self._exchange(batch)
        except Exception:
            # Task boundary: a fault of ours must neither stop the limiter nor be
            # retried for ever. What was charged is in the ledger.
            _logger.exception("a batch of %d operations was dropped", len(batch))
            self.dropped += len(batch)
            for pending in batch:
                pending.fail("internal fault")
                self._release(pending)

    async def _exchange(self, batch: list[Pending]) -> bool:
        """Make one call and hand out its answers; tell whether Redis answered."""
        is_sent = False
        try:
            await self._connection.open()
            packed = self._encode(batch)
            is_sent, sent_at = True, self._loop.time()
            reply = decode(await self._connection.run(*packed))
        except (*RedisFailure, msgspec.MsgspecError) as error:
            self._note_failure(error)
            self._requeue(batch, is_sent)
            return False
        self._patient_until = self._attention.seconds() + ADMIT_SECONDS
        self.breaker = after_success(self.breaker, self._now_ms())
        self.clock.saw(reply, sent_at)
        is_cold = False
        for pending, answer in zip(batch, reply.answers, strict=True):
            if isinstance(pending.operation, Admit):
                self._admitted(pending, pending.operation, answer)
                is_cold = is_cold or answer[0] == Outcome.COLD
            elif pending.future is None:
                self._finish(pending, answer)
            else:
                pending.answer(answer)
        if is_cold:
            # Read anew before the next call; until then every admit answers COLD.
            self._connection.counter_epoch = b""
        return True

    def _encode(self, batch: list[Pending]) -> tuple[list[str], list[bytes]]:
        for pending in batch:
            pending.attempts += 1
            if isinstance(pending.operation, Admit):
                not_after = self._loop.time() + self._left(pending)
                pending.operation.not_after_ms = self.clock.server_ms(not_after)
        return encode([pending.operation for pending in batch], self._keyspace)

    def _admitted(self, pending: Pending, operation: Admit, answer: Answer) -> None:
        outcome = answer[0]
        if outcome in _HELD:
            if not pending.answer(answer):
                self._release(pending)
            return
        if outcome in _TRY_AGAIN and self._may_retry(pending):
            if outcome == Outcome.STALE:
                self._rebind(operation, self.clock.now_ms(self._loop.time()))
            self._first.appendleft(pending)
            return
        if outcome == Outcome.DENY:
            pending.answer(answer)
        else:
            pending.fail(f"admit ended as {Outcome(outcome).name.lower()}")
        if outcome == Outcome.FAULT:
            _logger.error("admit failed: %s", answer[1])
        if pending.is_unknown or outcome == Outcome.FAULT:
            # An earlier attempt may have taken effect, or may yet.
            self._release(pending)

    def _finish(self, pending: Pending, answer: Answer) -> None:
        if answer[0] == Outcome.FAULT:
            # It would fail the same way again; the ledger knows what was spent.
            self.dropped += 1
            _logger.error("%s failed: %s", type(pending.operation).__name__, answer[1])

    def _requeue(self, batch: list[Pending], is_sent: bool) -> None:
        for pending in reversed(batch):
            if not isinstance(pending.operation, Admit):
                if pending.future is None or not pending.future.done():
                    self._background.appendleft(pending)
                continue
            pending.is_unknown = pending.is_unknown or is_sent
            if self._may_retry(pending):
                self._first.appendleft(pending)
                continue
            pending.fail("the counters did not answer in time")
            if pending.is_unknown:
                self._release(pending)

    def _may_retry(self, pending: Pending) -> bool:
        return (
            pending.attempts < ADMIT_ATTEMPTS
            and pending.future is not None
            and not pending.future.done()
            and self._left(pending) > 0
        )

    def _release(self, pending: Pending) -> None:
        """Undo an admit that nobody waits for any more, whatever became of it."""
        if isinstance(pending.operation, Admit):
            operation = pending.operation
            self.push_later(Release(operation.request_id, operation.bound))

    def _note_failure(self, error: BaseException) -> None:
        was_open = self.breaker.is_open
        if was_open or self._connection.late_seconds <= LATE_LOOP_SECONDS:
            self.breaker = after_failure(self.breaker, self._now_ms())
        if self.breaker.is_open and not was_open:
            _logger.warning("limits unavailable: %s: %s", type(error).__name__, error)

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)
