"""One open configuration stream: reads, hands on, answers, until either side leaves.

Reading never waits for work: a revocation is in force when it is read, whatever is being received,
compiled or written at that time.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from typing import Final, assert_never

import grpc
import structlog
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from dataplane.changes import Changes
from dataplane.control.answering import Answering
from dataplane.control.applying import Applier
from dataplane.control.counter_tasks import CounterTasks, Handler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.figures import StreamFigures
from dataplane.control.heartbeats import Condition
from dataplane.control.hello import PROTOCOL_VERSION, Node
from dataplane.control.outgoing import Outgoing
from dataplane.control.receiving import Receiving
from dataplane.control.revoking import OnRevocation, RevocationKeeper, Revoking
from dataplane.control.sealing import SealingKey

_WELCOME_SECONDS: Final = 5.0
_DEFAULT_HEARTBEAT_SECONDS: Final = 5.0
# What a control plane may ask for: neither a flood, nor a silence that nobody notices.
_HEARTBEAT_SECONDS: Final = (0.02, 60.0)
# Silent for three heartbeats: dead.
_HEARTBEATS_TO_DEATH: Final = 3
# After a goodbye, what is being done may end, and is answered; the other side then ends the stream.
_LEAVE_SECONDS: Final = 2.0
_LINGER_SECONDS: Final = 0.2

_log: Final = structlog.get_logger(__name__)


class UnreadableMessageError(Exception):
    """A message of the control plane is not one."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all streams of one process work with; see `Watch`."""

    node: Node
    current: CurrentSnapshot
    applier: Applier
    keeper: RevocationKeeper | None
    condition: Condition
    changes: Changes
    figures: StreamFigures
    clock_ms: Callable[[], int]
    on_counter_task: Handler | None
    on_revocation: OnRevocation | None


class Session:
    """One stream, from Hello to its end.

    Attributes:
        welcome_at: When it was accepted, `time.monotonic()`; None: it was not yet.
        has_goodbye: Whether the control plane asked for another stream.
    """

    def __init__(self, parts: Parts) -> None:
        """Prepare a stream with a sealing key of its own."""
        self.welcome_at: float | None = None
        self._parts = parts
        self._outgoing = Outgoing()
        self._sealing_key = SealingKey()
        self._answering = Answering(parts.applier, self._outgoing, parts.figures)
        self._receiving = Receiving(
            parts.applier.holdings,
            self._sealing_key,
            parts.figures,
            self._answering.refuse,
            self._answering.take,
        )
        self._revoking = Revoking(
            parts.current,
            parts.keeper,
            parts.on_revocation,
            parts.clock_ms,
            self._outgoing,
            parts.figures,
        )
        self._counter_tasks = CounterTasks(parts.on_counter_task)
        self._heard_at = time.monotonic()
        self._heartbeat_seconds = _DEFAULT_HEARTBEAT_SECONDS
        self._is_welcome = asyncio.Event()
        self._goodbye = asyncio.Event()
        self._leave_seconds = _LEAVE_SECONDS

    @property
    def has_goodbye(self) -> bool:
        """Return whether the control plane asked for another stream."""
        return self._goodbye.is_set()

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Hold the stream until it ends.

        Raises:
            grpc.aio.AioRpcError: It was refused or lost.
            TimeoutError: The control plane fell silent.
            asyncio.QueueFull: It asks faster than it listens or than this node can answer.
            UnreadableMessageError: It speaks another language.
            TooManyRevocationsError: It revokes without end.
        """
        node = self._parts.node
        self._outgoing.say(node.hello(self._parts.applier.holdings, self._sealing_key))
        # Not waited for: an address that refuses fails at once, a silent one at the Welcome.
        stream = pb_grpc.ConfigServiceStub(channel).StreamConfig(
            self._outgoing.messages(), metadata=node.metadata()
        )
        tasks = [
            asyncio.create_task(self._listen(stream), name="config-read"),
            asyncio.create_task(self._receiving.run(), name="config-receive"),
            asyncio.create_task(self._answering.run(), name="config-apply"),
            asyncio.create_task(self._revoking.run(), name="config-revocations"),
            asyncio.create_task(self._beat(), name="config-heartbeat"),
            asyncio.create_task(
                self._counter_tasks.run(self._outgoing.say), name="config-counter-tasks"
            ),
            asyncio.create_task(self._leave(), name="config-leave"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            stream.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # A stream that was lost, not cancelled, would go on waiting for something to say.
            self._outgoing.end()

    async def _listen(self, stream: AsyncIterable[pb.StreamConfigResponse | None]) -> None:
        async for message in stream:
            if message is None:
                # What the library hands on for bytes that cannot be decoded.
                raise UnreadableMessageError
            self._heard_at = self._parts.figures.heard_at = time.monotonic()
            await self._take(message)

    async def _take(self, message: pb.StreamConfigResponse) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self._welcome(message.welcome)
            case "transfer_begin" | "transfer_chunk" | "transfer_end":
                await self._receiving.take(message)
            case "revocation":
                self._revoking.take(message.revocation)
            case "heartbeat":
                self._note_newest(message.heartbeat.position)
            case "counter_task":
                self._counter_tasks.take(message.counter_task, self._outgoing.say)
            case "goodbye":
                self._say_goodbye(message.goodbye)
            case None:
                # A message of a newer control plane, which means nothing here.
                pass
            case unreachable:
                assert_never(unreachable)

    def _welcome(self, welcome: pb.Welcome) -> None:
        if self._is_welcome.is_set():
            return
        figures = self._parts.figures
        figures.reconnects_total += figures.protocol_version > 0
        figures.is_connected, figures.control_plane_id = True, welcome.control_plane_id[:200]
        # Before the second version nothing was said of it.
        figures.protocol_version = min(PROTOCOL_VERSION, max(1, welcome.protocol_version))
        if welcome.heartbeat_interval_ms > 0:
            shortest, longest = _HEARTBEAT_SECONDS
            asked_seconds = welcome.heartbeat_interval_ms / 1000
            self._heartbeat_seconds = min(longest, max(shortest, asked_seconds))
        self._note_newest(welcome.current)
        self.welcome_at = time.monotonic()
        self._is_welcome.set()
        _log.info(
            "config_stream_open",
            control_plane=figures.control_plane_id,
            protocol_version=figures.protocol_version,
        )

    def _note_newest(self, newest: position_pb2.Position) -> None:
        if newest.config_epoch:
            figures = self._parts.figures
            figures.known_epoch, figures.known_revision = newest.config_epoch, newest.revision

    def _say_goodbye(self, goodbye: pb.Goodbye) -> None:
        reason = pb.GoodbyeReason.Name(goodbye.reason) if goodbye.reason in (1, 2) else "unknown"
        _log.info("config_stream_leaving", reason=reason)
        self._leave_seconds = min(_LEAVE_SECONDS, max(0, goodbye.ends_in_ms) / 1000)
        self._goodbye.set()

    async def _beat(self) -> None:
        async with asyncio.timeout(_WELCOME_SECONDS):
            await self._is_welcome.wait()
        parts = self._parts
        while True:
            await parts.condition.until_next(parts.changes, self._heartbeat_seconds)
            silent_seconds = time.monotonic() - self._heard_at
            if silent_seconds > _HEARTBEATS_TO_DEATH * self._heartbeat_seconds:
                raise TimeoutError("the control plane fell silent")
            beat = parts.condition.heartbeat(
                parts.applier.holdings.position, is_serving=parts.current.is_serving
            )
            with contextlib.suppress(asyncio.QueueFull):
                self._outgoing.say(beat)

    async def _leave(self) -> None:
        """Return when the stream may be left after a goodbye: what was begun is answered."""
        await self._goodbye.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._leave_seconds):
                await self._answering.settled()
                await self._revoking.settled()
                await self._outgoing.finish()
        # Most end the stream when nothing more is said on it; then this is cancelled.
        await asyncio.sleep(_LINGER_SECONDS)
