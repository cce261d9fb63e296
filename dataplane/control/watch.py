"""Holds the configuration stream: reads, applies, answers, and reconnects.

Reading and applying are two tasks, so that a revocation overtakes a transfer that is still being
compiled. Only the newest complete transfer waits to be applied.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final, assert_never

import grpc
import structlog
from tollkeeper.common.v1 import errors_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2

from dataplane.changes import Changes
from dataplane.control.channels import channel_to
from dataplane.control.compile import InvalidConfigurationError, Quarantined, compile_snapshot
from dataplane.control.counter_tasks import CounterTasks, Handler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.transfers import (
    EMPTY,
    Contents,
    IncomingTransfer,
    RefusedTransferError,
    position_to_proto,
)

_log = structlog.get_logger(__name__)
PROTOCOL_VERSION: Final = 1
_CONNECT_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = 0.1
# A control plane that is back must be followed within a second.
_LONGEST_DELAY_SECONDS: Final = 1.0
# A token that is refused stays so until an operator acts.
_REFUSED_DELAY_SECONDS: Final = 10.0
_REFUSED: Final = (
    grpc.StatusCode.UNAUTHENTICATED.name,
    grpc.StatusCode.PERMISSION_DENIED.name,
)
# An answer must fit into one message, whatever a transfer holds.
_MAX_NAMED_QUARANTINED: Final = 1_000
# Silent for three heartbeats: dead.
_HEARTBEATS_TO_DEATH: Final = 3
_DEFAULT_HEARTBEAT_SECONDS: Final = 5.0
# Answers are tiny and the control plane reads them at once.
_MAX_OUTGOING: Final = 1_000
_SERVING: Final = errors_pb2.ERROR_REASON_UNSPECIFIED
_NOT_READY: Final = errors_pb2.ERROR_REASON_CONFIGURATION_UNAVAILABLE
_SUBJECTS: Final = {
    resources_pb2.RESOURCE_KIND_API_KEY: "key",
    resources_pb2.RESOURCE_KIND_USER: "user",
    resources_pb2.RESOURCE_KIND_ORGANIZATION: "organization",
    resources_pb2.RESOURCE_KIND_DEVICE: "device",
}


@dataclass(frozen=True, slots=True)
class Node:
    """Who this data plane is."""

    node_id: str
    version: str
    token: str = field(repr=False)
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(slots=True)
class _Session:
    """One open stream."""

    outgoing: asyncio.Queue[pb.StreamConfigRequest]
    heard_at: float
    counter_tasks: CounterTasks
    heartbeat_seconds: float = _DEFAULT_HEARTBEAT_SECONDS
    incoming: IncomingTransfer | None = None
    refused: RefusedTransferError | None = None
    ready: tuple[IncomingTransfer, pb.TransferEnd] | None = None
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    is_welcome: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, message: pb.StreamConfigRequest) -> None:
        self.outgoing.put_nowait(message)


class Watch:
    """Keeps `current` at the control plane's newest configuration; run it as a task.

    Args:
        addresses: Control planes, `host:port`, tried in turn.
        node: Who this is.
        current: What is kept up to date.
        clock_ms: Unix milliseconds.
        unreported_records: For heartbeats.
        on_applied: Called with what was applied, to be kept as last known good.
        are_limits_available: For heartbeats: whether counters can be asked.
        maintains_counters: For heartbeats: whether this node holds their maintenance lease.
        oldest_unreported_ms: For heartbeats: when the oldest request began, Unix milliseconds, that
            is not known to be in the ledger; None when there is none.
        on_counter_task: Does what the control plane asks of the counters, one task at a time; it is
            cancelled with the stream. None: such tasks are met with silence.
        changes: Noted by others whenever counters can or cannot be asked, or are maintained
            elsewhere, and by this one with every configuration that it puts in force.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        node: Node,
        current: CurrentSnapshot,
        clock_ms: Callable[[], int],
        unreported_records: Callable[[], int],
        on_applied: Callable[[Contents], None],
        are_limits_available: Callable[[], bool] = lambda: True,
        maintains_counters: Callable[[], bool] = lambda: False,
        oldest_unreported_ms: Callable[[], int | None] = lambda: None,
        on_counter_task: Handler | None = None,
        changes: Changes | None = None,
    ) -> None:
        self._addresses = addresses
        self._node = node
        self._current = current
        self._clock_ms = clock_ms
        self._unreported_records = unreported_records
        self._on_applied = on_applied
        self._are_limits_available = are_limits_available
        self._maintains_counters = maintains_counters
        self._oldest_unreported_ms = oldest_unreported_ms
        self._on_counter_task = on_counter_task
        self._changes = changes or Changes()
        self._contents = EMPTY
        self.is_connected = False

    async def restore(self, contents: Contents) -> bool:
        """Serve a configuration that was kept on disk; return whether it can be served."""
        try:
            compiled = await compile_snapshot(
                contents.position, contents.resources.values(), contents.secrets, self._clock_ms()
            )
        except InvalidConfigurationError as error:
            _log.error("kept_configuration_unusable", problems=list(error.problems))
            return False
        self._contents = contents
        self._current.replace(compiled.snapshot)
        self._changes.note()
        return True

    async def run(self) -> None:
        """Hold the stream until cancelled."""
        failures = 0
        while True:
            address = self._addresses[failures % len(self._addresses)]
            started_at = time.monotonic()
            try:
                await self._hold(address)
                reason = "ended"
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            except (TimeoutError, asyncio.QueueFull) as error:
                reason = type(error).__name__
            except Exception as error:
                # The last boundary: without this task no change and no revocation would arrive.
                reason = type(error).__name__
                _log.exception("config_stream_failed", address=address)
            finally:
                self.is_connected = False
            # A stream that held for a while was no failure: begin with the shortest delay.
            held_long = time.monotonic() - started_at > _LONGEST_DELAY_SECONDS
            failures = 1 if held_long else failures + 1
            if reason in _REFUSED:
                _log.error("node_token_refused", address=address, setting="TOLLKEEPER_JOIN_TOKEN")
            elif failures in (1, 10) or failures % 100 == 0:
                _log.warning(
                    "config_stream_lost", address=address, reason=reason, failures=failures
                )
            shortest = _FIRST_DELAY_SECONDS
            longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(failures, 10))
            if reason in _REFUSED:
                shortest, longest = _LONGEST_DELAY_SECONDS, _REFUSED_DELAY_SECONDS
            await asyncio.sleep(random.uniform(shortest, longest))  # noqa: S311 - jitter

    async def _hold(self, address: str) -> None:
        async with channel_to(address) as channel:
            # Not waited for: an address that refuses fails at once, a silent one at the Welcome.
            counter_tasks = CounterTasks(self._on_counter_task)
            session = _Session(asyncio.Queue(_MAX_OUTGOING), time.monotonic(), counter_tasks)
            session.say(pb.StreamConfigRequest(hello=self._hello()))
            stream = pb_grpc.ConfigServiceStub(channel).StreamConfig(
                _drain(session.outgoing),
                metadata=(("authorization", f"Bearer {self._node.token}"),),
            )
            tasks = [
                asyncio.create_task(self._apply_newest(session), name="config-apply"),
                asyncio.create_task(self._beat(session), name="config-heartbeat"),
                asyncio.create_task(counter_tasks.run(session.say), name="config-counter-tasks"),
                asyncio.create_task(self._listen(session, stream), name="config-read"),
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

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            node_id=self._node.node_id,
            version=self._node.version,
            protocol_version=PROTOCOL_VERSION,
            applied=position_to_proto(self._contents.position),
            boot_id=self._node.boot_id,
        )

    async def _listen(
        self, session: _Session, stream: AsyncIterable[pb.StreamConfigResponse]
    ) -> None:
        async for message in stream:
            session.heard_at = time.monotonic()
            self._take(session, message)

    def _take(self, session: _Session, message: pb.StreamConfigResponse) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self.is_connected = True
                if message.welcome.heartbeat_interval_ms > 0:
                    session.heartbeat_seconds = message.welcome.heartbeat_interval_ms / 1000
                session.is_welcome.set()
                _log.info("config_stream_open", control_plane=message.welcome.control_plane_id)
            case "transfer_begin":
                session.incoming, session.refused = IncomingTransfer(message.transfer_begin), None
            case "transfer_chunk":
                self._take_chunk(session, message.transfer_chunk)
            case "transfer_end":
                self._take_end(session, message.transfer_end)
            case "revocation":
                self._revoke(session, message.revocation)
            case "counter_task":
                session.counter_tasks.take(message.counter_task, session.say)
            case "heartbeat" | None:
                # None: a message of a newer control plane, which means nothing here.
                pass
            case unreachable:
                assert_never(unreachable)

    def _take_chunk(self, session: _Session, chunk: pb.TransferChunk) -> None:
        incoming = session.incoming
        if incoming is None or chunk.transfer_id != incoming.begin.transfer_id or session.refused:
            return
        try:
            incoming.add(chunk)
        except RefusedTransferError as refused:
            session.refused = refused

    def _take_end(self, session: _Session, end: pb.TransferEnd) -> None:
        incoming = session.incoming
        if incoming is None or end.transfer_id != incoming.begin.transfer_id:
            return
        session.incoming = None
        if session.refused is not None:
            self._refuse(session, end.transfer_id, session.refused)
            return
        session.ready = (incoming, end)
        session.is_ready.set()

    def _revoke(self, session: _Session, revocation: pb.Revocation) -> None:
        kind = _SUBJECTS.get(revocation.subject.kind)
        if kind is None:
            # Silence is the truth: an answer would be counted in the receipt as "in force here".
            _log.warning("revocation_unknown", revocation_id=revocation.revocation_id)
            return
        self._current.revoke(
            (kind, revocation.subject.id),
            revocation.config_epoch,
            revocation.revision,
            terminates=revocation.terminate_streams,
        )
        answer = pb.RevocationAck(revocation_id=revocation.revocation_id)
        session.say(pb.StreamConfigRequest(revocation_ack=answer))

    async def _apply_newest(self, session: _Session) -> None:
        while True:
            await session.is_ready.wait()
            session.is_ready.clear()
            if session.ready is None:
                continue
            (incoming, end), session.ready = session.ready, None
            try:
                quarantined = await self._apply(incoming, end)
            except RefusedTransferError as refused:
                self._refuse(session, end.transfer_id, refused)
            else:
                self._acknowledge(session, end.transfer_id, quarantined)

    async def _apply(
        self, incoming: IncomingTransfer, end: pb.TransferEnd
    ) -> tuple[Quarantined, ...]:
        # In a thread: hashing a large configuration takes longer than a request may wait.
        contents = await asyncio.to_thread(incoming.contents, self._contents, end)
        try:
            compiled = await compile_snapshot(
                contents.position, contents.resources.values(), contents.secrets, self._clock_ms()
            )
        except InvalidConfigurationError as error:
            raise RefusedTransferError(pb.NACK_REASON_INVALID, *error.problems) from error
        self._contents = contents
        self._current.replace(compiled.snapshot)
        self._changes.note()
        self._on_applied(contents)
        return compiled.quarantined

    def _acknowledge(
        self, session: _Session, transfer_id: int, quarantined: tuple[Quarantined, ...]
    ) -> None:
        position = self._contents.position
        _log.info("config_applied", revision=position.revision, quarantined=len(quarantined))
        ack = pb.Ack(
            transfer_id=transfer_id,
            applied=position_to_proto(position),
            quarantined=[
                pb.Quarantined(
                    resource=resources_pb2.ResourceRef(kind=each.kind, id=each.resource_id),  # type: ignore[arg-type] # as it was received
                    detail=each.detail,
                )
                for each in quarantined[:_MAX_NAMED_QUARANTINED]
            ],
        )
        session.say(pb.StreamConfigRequest(ack=ack))

    def _refuse(self, session: _Session, transfer_id: int, refused: RefusedTransferError) -> None:
        _log.error("config_refused", problems=list(refused.problems))
        nack = pb.Nack(
            transfer_id=transfer_id,
            applied=position_to_proto(self._contents.position),
            reason=refused.reason,
            problems=refused.problems,
        )
        session.say(pb.StreamConfigRequest(nack=nack))

    async def _beat(self, session: _Session) -> None:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await session.is_welcome.wait()
        while True:
            await self._until_beat(session.heartbeat_seconds)
            silent_seconds = time.monotonic() - session.heard_at
            if silent_seconds > _HEARTBEATS_TO_DEATH * session.heartbeat_seconds:
                raise TimeoutError("the control plane fell silent")
            beat = self._heartbeat()
            with contextlib.suppress(asyncio.QueueFull):
                session.say(pb.StreamConfigRequest(heartbeat=beat))

    async def _until_beat(self, seconds: float) -> None:
        """Wait for the next heartbeat; what an administrator waits for is told at once."""
        told = self._told()
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0 and self._told() == told:
            await self._changes.after(self._changes.number, left)

    def _told(self) -> tuple[bool, bool]:
        return self._maintains_counters(), self._are_limits_available()

    def _heartbeat(self) -> pb.Heartbeat:
        beat = pb.Heartbeat(
            position=position_to_proto(self._contents.position),
            not_ready=_SERVING if self._current.latest is not None else _NOT_READY,
            unreported_records=self._unreported_records(),
            limits_unavailable=not self._are_limits_available(),
            maintains_counters=self._maintains_counters(),
        )
        oldest_ms = self._oldest_unreported_ms()
        if oldest_ms is not None:
            beat.oldest_unreported_at.FromMilliseconds(oldest_ms)
        return beat


async def _drain(
    outgoing: asyncio.Queue[pb.StreamConfigRequest],
) -> AsyncIterator[pb.StreamConfigRequest]:
    while True:
        yield await outgoing.get()
