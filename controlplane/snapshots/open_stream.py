"""One open stream as far as it is not about transfers: its queues, its heartbeats, its age and its end."""

import asyncio
import contextlib
from collections import deque
from enum import Enum
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.node_state import NodeState
from controlplane.snapshots.scopes import Scope
from controlplane.snapshots.snapshot import Position, position_to_proto
from controlplane.snapshots.understanding import Understanding

# Three silent intervals are the death of a stream.
SILENT_HEARTBEATS: Final = 3

# 10 s: a node opens its next stream at once; what it still says on this one is heard.
GOODBYE_S: Final = 10.0

# More would mean that a node reads nothing; it is cut off and comes back to a whole transfer.
MAX_QUEUED_REVOCATIONS: Final = 10_000


class StreamViolationError(Exception):
    """The node said something that the contract does not allow here; the text may be shown to it."""


class Ending(Enum):
    """How a stream ends, for who is at its other end."""

    DONE = "done"
    UNAVAILABLE = "unavailable"
    DENIED = "denied"
    INVALID = "invalid"
    SILENT = "silent"


class OpenStream(NodeState):
    """What is said on a stream beside transfers, until it ends.

    `now_s` is always the same monotonic clock. `wake` is set whenever there may be something new
    to say; `ended` holds the reason once the stream is to be closed, and `ending` of which sort it is.
    """

    def __init__(
        self,
        hello: pb.Hello,
        understanding: Understanding,
        scope: Scope,
        *,
        interval_s: float,
        now_s: float,
        lives_s: float,
    ) -> None:
        """Begin with what the node said first.

        Args:
            hello: Its words.
            understanding: What may be said to it.
            scope: What it is sent something of.
            interval_s: How often either side sends a heartbeat.
            now_s: Now.
            lives_s: After how long the stream is to be exchanged for another one.
        """
        super().__init__(hello, scope, now_s=now_s)
        self.understanding = understanding
        self.wake = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ending = Ending.UNAVAILABLE
        self.is_leaving = False
        """Goodbye was said: nothing new is begun."""
        self._revocations: deque[pb.Revocation] = deque()
        self._counter_tasks: deque[pb.CounterTask] = deque()
        self._goodbye: pb.Goodbye | None = None
        self._interval_s = interval_s
        self._heartbeat_at_s = now_s + interval_s
        self._leaves_at_s = now_s + lives_s
        self._ends_at_s: float | None = None

    def is_live(self, now_s: float) -> bool:
        """Say whether the stream is open and the node was heard within three heartbeats."""
        return not self.ended.done() and now_s < self.silent_at_s

    @property
    def silent_at_s(self) -> float:
        """When the stream is dead, unless something is heard before."""
        return self.heard_at_s + SILENT_HEARTBEATS * self._interval_s

    def end(self, reason: str, ending: Ending = Ending.UNAVAILABLE) -> None:
        """Ask for the stream to be closed; the first reason counts."""
        if not self.ended.done():
            self.ending = ending
            self.ended.set_result(reason)
        self.wake.set()

    def revoke(self, revocation: pb.Revocation) -> None:
        """Send `revocation` next, ahead of everything else."""
        if len(self._revocations) >= MAX_QUEUED_REVOCATIONS:
            self.end("too many revocations were not read")
            return
        self._revocations.append(revocation)
        self.wake.set()

    def ask(self, task: pb.CounterTask) -> None:
        """Send `task` next, behind revocations. Whoever asks bounds how many wait at once."""
        self._counter_tasks.append(task)
        self.wake.set()

    def withdraw(self, task: pb.CounterTask) -> None:
        """Do not send a task any more, if it was not sent yet."""
        with contextlib.suppress(ValueError):
            self._counter_tasks.remove(task)

    def leave(self, reason: pb.GoodbyeReason.ValueType, *, within_s: float, now_s: float) -> None:
        """Ask the node for another stream; this one ends within `within_s`, at once if it does not understand that."""
        if self.is_leaving:
            return
        self.is_leaving = True
        self._ends_at_s = now_s
        if self.understanding.has_goodbye:
            self._ends_at_s += within_s
            self._goodbye = pb.Goodbye(reason=reason, ends_in_ms=round(within_s * 1000))
        self.wake.set()

    def _next_aside(
        self, now_s: float, newest: Position, *, is_sending: bool
    ) -> pb.StreamConfigResponse | None:
        """Return what goes before and between the messages of a transfer, or None.

        A stream is not asked to be exchanged in the middle of a transfer (`is_sending`).
        """
        if self._revocations:
            return pb.StreamConfigResponse(revocation=self._revocations.popleft())
        if self._counter_tasks:
            return pb.StreamConfigResponse(counter_task=self._counter_tasks.popleft())
        if now_s >= self._leaves_at_s and not is_sending:
            self.leave(pb.GOODBYE_REASON_AGE, within_s=GOODBYE_S, now_s=now_s)
        if self._ends_at_s is not None and now_s >= self._ends_at_s:
            self.end("the node was asked for another stream", Ending.DONE)
        if self._goodbye is not None:
            goodbye, self._goodbye = self._goodbye, None
            return pb.StreamConfigResponse(goodbye=goodbye)
        if now_s >= self._heartbeat_at_s:
            self._heartbeat_at_s = now_s + self._interval_s
            heartbeat = pb.Heartbeat(position=position_to_proto(newest))
            return pb.StreamConfigResponse(heartbeat=heartbeat)
        return None

    def _aside_at_s(self) -> float:
        """Return when there is something to say aside, if nothing happens before."""
        leaves_at_s = self._leaves_at_s if self._ends_at_s is None else self._ends_at_s
        return min(self._heartbeat_at_s, leaves_at_s)
