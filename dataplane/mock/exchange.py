"""A reply on its way to the client: steps in time, as fast as the client reads."""

import asyncio
from collections.abc import Callable
from typing import Final

from dataplane.mock.replies import Ending, Reply
from dataplane.mock.stats import Stats

_MS_PER_SECOND: Final = 1000


class Exchange:
    """Hands the steps of one reply to the transport when they are due.

    Timers of the event loop are the only clock: no task and no thread belongs to an exchange. A
    step that is overdue, because the client read slowly or the loop was busy, goes out at once.
    """

    __slots__ = (
        "_is_paused", "_loop", "_next", "_on_end", "_reply", "_started_at", "_stats", "_timer",
        "_transport", "is_over",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        reply: Reply,
        stats: Stats,
        on_end: Callable[[], None],
    ) -> None:
        """Prepare an exchange; `on_end` is called once after the last step, unless it is left."""
        self._transport = transport
        self._reply = reply
        self._stats = stats
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._next = next(reply.steps, None)
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self.is_over = False

    def start(self) -> None:
        """Count the call as accepted and hand over what is due at once."""
        self._stats.input_tokens += self._reply.input_tokens
        if self._reply.counts_as_stream:
            self._stats.open_streams += 1
        self._pump()

    def pause(self) -> None:
        """Hand over nothing more until `resume`: the client reads more slowly than it is sent."""
        self._is_paused = True
        self._stop_timer()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._is_paused = False
        self._pump()

    def leave(self) -> None:
        """Stop at once, counting a stream as cancelled: the client is gone."""
        if self.is_over:
            return
        self.is_over = True
        self._stop_timer()
        if self._reply.counts_as_stream:
            self._stats.open_streams -= 1
            self._stats.cancelled_streams += 1

    def _pump(self) -> None:
        self._timer = None
        while not self._is_paused and not self.is_over:
            step = self._next
            if step is None:
                if self._reply.ending is not Ending.NEVER:
                    self._end()
                return
            if step.delay_ms:
                due_at = self._started_at + step.delay_ms / _MS_PER_SECOND
                if due_at > self._loop.time():
                    self._timer = self._loop.call_at(due_at, self._pump)
                    return
            self._next = next(self._reply.steps, None)
            self._stats.bytes += len(step.data)
            self._stats.output_tokens += step.tokens
            # Last, because a full transport calls `pause` from within.
            self._transport.write(self._reply.fill(step.data))

    def _end(self) -> None:
        self.is_over = True
        if self._reply.counts_as_stream:
            self._stats.open_streams -= 1
        if self._reply.ending is Ending.CUT:
            self._transport.close()
        self._on_end()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
