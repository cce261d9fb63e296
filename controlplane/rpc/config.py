"""`ConfigService`: the streams on which data planes follow the configuration.

A stream has three parts. The handler says what the node's `Watcher` wants to say, message by
message. A task reads what the node says and is the judge of its silence; because it is a task of
its own, a node that reads slowly is heard all the same. A second task cuts the handler off when
it cannot end by itself, since it waits for a node that reads nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from controlplane.snapshots.fleet import Fleet, FleetFullError
from controlplane.snapshots.snapshot import position_to_proto
from controlplane.snapshots.watcher import StreamViolationError, Watcher

# The newest shape of the contract that this control plane speaks, and the oldest.
PROTOCOL_VERSION: Final = 1

# A node says Hello at once; who does not is not a node.
_HELLO_DEADLINE_S: Final = 5.0

# A peer that reads nothing cannot be told why its stream ends; it is not waited for.
_FAREWELL_S: Final = 1.0

_MAX_NAME: Final = 128

_log: Final = structlog.get_logger(__name__)

_Requests = AsyncIterator[pb.StreamConfigRequest]
_Context = grpc.aio.ServicerContext[pb.StreamConfigRequest, pb.StreamConfigResponse]


class ConfigServicer(pb_grpc.ConfigServiceServicer):
    """Serves the streams of a fleet."""

    def __init__(self, fleet: Fleet, *, control_plane_id: str, version: str) -> None:
        self._fleet = fleet
        self._control_plane_id = control_plane_id
        self._version = version

    async def StreamConfig(
        self, request_iterator: _Requests, context: _Context
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        """Send the newest configuration now and after every change, until either side ends it."""
        hello = await _hello(request_iterator)
        if hello is None:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the first message is Hello, with a node_id and a boot_id of 1 to 128 characters"
                f" and a protocol_version of at least {PROTOCOL_VERSION}",
            )
        try:
            stream = _Stream(self._fleet, self._fleet.attach(hello))
        except FleetFullError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more nodes are taken")
        stream.start(request_iterator)
        try:
            yield pb.StreamConfigResponse(welcome=self._welcome())
            while (message := await stream.next_message()) is not None:
                yield message
        finally:
            stream.stop()
        if stream.status is not grpc.StatusCode.OK:
            await context.abort(stream.status, stream.watcher.ended.result())

    def _welcome(self) -> pb.Welcome:
        return pb.Welcome(
            control_plane_id=self._control_plane_id,
            version=self._version,
            heartbeat_interval_ms=round(self._fleet.interval_s * 1000),
            current=position_to_proto(self._fleet.current),
        )


async def _hello(requests: _Requests) -> pb.Hello | None:
    """Return the Hello that a stream begins with, or None when it begins with anything else."""
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(_HELLO_DEADLINE_S):
            first = await anext(requests)
        hello = first.hello
        is_sound = (
            first.HasField("hello")
            and 0 < len(hello.node_id) <= _MAX_NAME
            and len(hello.version) <= _MAX_NAME
            and 0 < len(hello.boot_id) <= _MAX_NAME
            and hello.protocol_version >= PROTOCOL_VERSION
        )
        return hello if is_sound else None
    return None


class _Stream:
    """One open stream: its watcher, and the tasks beside its handler."""

    def __init__(self, fleet: Fleet, watcher: Watcher) -> None:
        self.watcher = watcher
        self.status = grpc.StatusCode.UNAVAILABLE
        self._fleet = fleet
        self._tasks: list[asyncio.Task[None]] = []
        self._log = _log.bind(node_id=watcher.node_id, boot_id=watcher.boot_id)

    def start(self, requests: _Requests) -> None:
        """Begin to read; called in the handler's task."""
        handler = asyncio.current_task()
        if handler is None:
            raise RuntimeError("a handler runs in a task")
        self._tasks = [
            asyncio.create_task(self._listen(requests)),
            asyncio.create_task(self._cut_off(handler)),
        ]
        applied = self.watcher.applied.revision
        self._log.info("node connected", version=self.watcher.version, revision=applied)

    def stop(self) -> None:
        """Forget the stream. Runs also when the handler was cut off or the connection is gone."""
        for task in self._tasks:
            task.cancel()
        self._detach()

    async def next_message(self) -> pb.StreamConfigResponse | None:
        """Wait for something to say; None when the stream is to end."""
        watcher = self.watcher
        while not watcher.ended.done():
            watcher.wake.clear()
            now_s = self._fleet.now_s()
            message = watcher.next_message(now_s)
            if message is not None:
                return message
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(watcher.idle_s(now_s)):
                    await watcher.wake.wait()
        return None

    async def _listen(self, requests: _Requests) -> None:
        """Take what the node says until the stream ends, then end the other side."""
        try:
            await self._read(requests)
            self.status = grpc.StatusCode.OK
            self.watcher.end("the node ended the stream")
        except StreamViolationError as error:
            self.status = grpc.StatusCode.INVALID_ARGUMENT
            self.watcher.end(str(error))
        except TimeoutError:
            self.status = grpc.StatusCode.DEADLINE_EXCEEDED
            self.watcher.end("nothing was heard for three heartbeats")
        except (
            Exception
        ) as error:  # task boundary: whatever the connection died of ends this stream only
            self.watcher.end("the stream cannot be read")
            self._log.warning("stream broken", error=repr(error))
        finally:
            self._detach()

    async def _read(self, requests: _Requests) -> None:
        watcher = self.watcher
        while not watcher.ended.done():
            async with asyncio.timeout(watcher.silent_at_s - self._fleet.now_s()):
                message = await anext(requests, None)
            if message is None:
                return
            watcher.heard_at_s = self._fleet.now_s()
            self._hear(message)

    def _hear(self, message: pb.StreamConfigRequest) -> None:
        watcher = self.watcher
        match message.WhichOneof("message"):
            case "ack":
                watcher.hear_ack(message.ack)
                self._fleet.hear_applied(watcher)
            case "nack":
                watcher.hear_nack(message.nack)
                self._log.error("configuration refused by a node", problems=watcher.problems)
            case "revocation_ack":
                self._fleet.hear_revocation_ack(watcher, message.revocation_ack.revocation_id)
            case "heartbeat":
                watcher.hear_heartbeat(message.heartbeat)
                self._fleet.hear_applied(watcher)
            case "counter_report":
                self._fleet.hear_counter_report(watcher, message.counter_report)
            case "hello":
                raise StreamViolationError("Hello is said once")
            case None:
                # A newer node may say what this control plane does not know.
                pass

    async def _cut_off(self, handler: asyncio.Task[object]) -> None:
        """End the handler soon after the stream was to end: it may wait for a node that reads nothing."""
        await asyncio.wait({self.watcher.ended})
        await asyncio.sleep(_FAREWELL_S)
        handler.cancel()

    def _detach(self) -> None:
        is_known = any(each is self.watcher for each in self._fleet.watchers())
        self._fleet.detach(self.watcher)
        if is_known:
            self._log.info("node disconnected", reason=self.watcher.ended.result())
