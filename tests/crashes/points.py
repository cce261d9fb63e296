"""Instants at which a data plane kills itself, as `kill -9` does: one method is wrapped, nothing else differs.

Only the program of these tests imports this: production has no such hook.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from enum import StrEnum
from typing import Any, Final  # Any: what a wrapped method takes is not looked at

from aiohttp import ClientRequest

from dataplane.admitting import Admitting
from dataplane.control.backlog import Backlog, Batch
from dataplane.control.usage import UsageReporter
from dataplane.http.entry import Entry
from dataplane.http.reading import Receive, Scope, Send
from dataplane.limits.batcher import Batcher
from dataplane.limits.operations import Settle
from dataplane.limits.pending import Pending
from dataplane.limits.reservation import Reservation
from dataplane.maintenance.reaping import Reaper
from dataplane.upstream.relay import Relay

_STREAM_END: Final = b"data: [DONE]"


class Point(StrEnum):
    """Where a process dies."""

    AFTER_ADMIT = "after-admit"
    AFTER_UPSTREAM_WRITE = "after-upstream-write"
    MID_STREAM = "mid-stream"
    AFTER_TOP_UP = "after-top-up"
    AFTER_LAST_BYTE = "after-last-byte"
    AFTER_SETTLE = "after-settle"
    BEFORE_ACKNOWLEDGEMENT = "before-acknowledgement"
    AFTER_REAPING = "after-reaping"
    BEFORE_FORGETTING = "before-forgetting"


def arm(point: Point) -> None:
    """Have this process die when it gets to `point` for the first time."""
    _ARM[point]()


def die() -> None:
    """End this process; nothing of it runs any more, and nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after(owner: type, name: str) -> Callable[[], None]:
    """Return what makes a method of `owner` the last thing that a process does."""

    def wrap() -> None:
        original = getattr(owner, name)

        async def dying(*arguments: Any, **named: Any) -> None:
            await original(*arguments, **named)
            die()

        setattr(owner, name, dying)

    return wrap


def _die_mid_stream() -> None:
    """Die when a caller has had the head of a stream and one more piece, and asks for the next."""
    rest = Relay.rest

    async def dying(self: Relay) -> AsyncGenerator[bytes]:
        async for piece in rest(self):
            yield piece
            die()

    setattr(Relay, "rest", dying)  # noqa: B010 - a type checker refuses the assignment


def _die_after_last_byte() -> None:
    """Die in the turn of the loop that wrote the end of a stream to its caller's socket.

    The settlement was queued before it, in the same turn: it is still in this process.
    """
    serve = Entry.__call__

    async def serving(self: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        async def dying(message: Any) -> None:
            await send(message)
            if _STREAM_END in message.get("body", b""):
                die()

        await serve(self, scope, receive, dying)

    setattr(Entry, "__call__", serving)  # noqa: B010 - as above


def _hold_reports_until_settled() -> None:
    """Have the ledger told of nothing before Redis has answered the first settlement."""
    settled = asyncio.Event()
    exchange, next_batch = Batcher._exchange, Backlog.next_batch

    async def noting(self: Batcher, batch: list[Pending]) -> bool:
        is_answered = await exchange(self, batch)
        if is_answered and any(isinstance(each.operation, Settle) for each in batch):
            settled.set()
        return is_answered

    async def waiting(self: Backlog) -> Batch | None:
        await settled.wait()
        return await next_batch(self)

    setattr(Batcher, "_exchange", noting)  # noqa: B010 - as above
    setattr(Backlog, "next_batch", waiting)  # noqa: B010 - as above


def _die_after_settle() -> None:
    """Die with the settlement in Redis and the record on its way to nobody."""
    _hold_reports_until_settled()
    _die_after(Backlog, "next_batch")()


def _die_before_acknowledgement() -> None:
    """Die when the ledger has said that it has the record, and before the spool learns of it."""
    _hold_reports_until_settled()
    acknowledge = Backlog.acknowledge

    def dying(self: Backlog, batch_id: int) -> bool:
        if self.on_the_way and self.on_the_way[0][1].request_ids:
            die()
        return acknowledge(self, batch_id)

    setattr(Backlog, "acknowledge", dying)  # noqa: B010 - as above


def _die_after_reaping() -> None:
    """Die when Redis has charged what another process left, and the ledger knows nothing of it."""
    reap = Reaper._reap

    async def dying(self: Reaper, overdue: Any, fence: int) -> None:
        await reap(self, overdue, fence)
        if self.reaped_total:
            die()

    setattr(Reaper, "_reap", dying)  # noqa: B010 - as above


_ARM: Final[dict[Point, Callable[[], None]]] = {
    Point.AFTER_ADMIT: _die_after(Admitting, "admit"),
    Point.AFTER_UPSTREAM_WRITE: _die_after(ClientRequest, "write_bytes"),
    Point.MID_STREAM: _die_mid_stream,
    Point.AFTER_TOP_UP: _die_after(Reservation, "extend"),
    Point.AFTER_LAST_BYTE: _die_after_last_byte,
    Point.AFTER_SETTLE: _die_after_settle,
    Point.BEFORE_ACKNOWLEDGEMENT: _die_before_acknowledgement,
    Point.AFTER_REAPING: _die_after_reaping,
    Point.BEFORE_FORGETTING: _die_after(UsageReporter, "deliver_abandoned"),
}
