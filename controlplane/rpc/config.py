"""`ConfigService`: the streams on which data planes follow the configuration."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from controlplane.rpc.config_streams import NodeStream, Requests
from controlplane.snapshots.bundles import UnusableKeyError
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.identity import Identify, claims_nothing
from controlplane.snapshots.open_stream import Ending
from controlplane.snapshots.snapshot import position_to_proto
from controlplane.snapshots.streams import (
    FleetClosedError,
    FleetFullError,
    NodeRefusedError,
)
from controlplane.snapshots.transfers import Message
from controlplane.snapshots.watcher import Watcher

# A node says Hello at once; who does not is not a node.
_HELLO_DEADLINE_S: Final = 5.0

_MAX_NAME: Final = 128

_UNSOUND_HELLO: Final = (
    f"the first message is Hello, with a node_id and a boot_id of 1 to {_MAX_NAME} printable characters"
    " and a protocol_version of at least 1"
)

_STATUS: Final = {
    Ending.DONE: grpc.StatusCode.OK,
    Ending.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Ending.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Ending.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Ending.SILENT: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_Context: TypeAlias = grpc.aio.ServicerContext[pb.StreamConfigRequest, Any]  # Any: see `_encoded`


def add_config_service(servicer: "ConfigServicer", server: grpc.aio.Server) -> None:
    """Serve `servicer` on `server`; in place of the generated function, which would have chunks decoded and encoded again."""
    service = pb.DESCRIPTOR.services_by_name["ConfigService"]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.stream_encoded,
        request_deserializer=pb.StreamConfigRequest.FromString,
        response_serializer=_encoded,
    )
    methods = {"StreamConfig": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service.full_name, methods),)
    )


def _encoded(message: Message) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class ConfigServicer(pb_grpc.ConfigServiceServicer):
    """Serves the streams of a fleet. Add it to a server with `add_config_service`."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        control_plane_id: str,
        version: str,
        identify: Identify = claims_nothing,
    ) -> None:
        """Serve `fleet`; `identify` says who a stream's peer is, by its certificate if it has one."""
        self._fleet = fleet
        self._control_plane_id = control_plane_id
        self._version = version
        self._identify = identify

    async def StreamConfig(
        self, request_iterator: Requests, context: _Context
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        """Send the newest configuration now and after every change, until either side ends it."""
        async with contextlib.aclosing(self.stream_encoded(request_iterator, context)) as messages:
            async for message in messages:
                if isinstance(message, bytes):
                    yield pb.StreamConfigResponse.FromString(message)
                else:
                    yield message

    async def stream_encoded(
        self, request_iterator: Requests, context: _Context
    ) -> AsyncGenerator[Message, None]:
        """Likewise, with chunks as the bytes that they travel as: nothing is encoded for one stream alone."""
        hello = await _hello(request_iterator)
        if hello is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _UNSOUND_HELLO)
        stream = NodeStream(self._fleet, await self._attached(hello, context))
        stream.start(request_iterator)
        try:
            yield pb.StreamConfigResponse(welcome=self._welcome(stream.watcher))
            while (message := await stream.next_message()) is not None:
                yield message
        finally:
            stream.stop()
        status = _STATUS[stream.watcher.ending]
        if status is not grpc.StatusCode.OK:
            await context.abort(status, stream.watcher.ended.result())

    async def _attached(self, hello: pb.Hello, context: _Context) -> Watcher:
        """Return the watcher of a new stream, or end the call."""
        try:
            return self._fleet.attach(hello, self._identify(context))
        except NodeRefusedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except UnusableKeyError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except FleetFullError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more nodes are taken")
        except FleetClosedError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane stops")

    def _welcome(self, watcher: Watcher) -> pb.Welcome:
        return pb.Welcome(
            control_plane_id=self._control_plane_id,
            version=self._version,
            heartbeat_interval_ms=round(self._fleet.interval_s * 1000),
            current=position_to_proto(watcher.wanted),
            protocol_version=watcher.understanding.protocol_version,
            organization_ids=sorted(watcher.organization_ids),
        )


async def _hello(requests: Requests) -> pb.Hello | None:
    """Return the Hello that a stream begins with, or None when it begins with anything else."""
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(_HELLO_DEADLINE_S):
            first = await anext(requests)
        hello = first.hello
        is_sound = (
            first.HasField("hello")
            and 0 < len(hello.node_id) <= _MAX_NAME
            # It is written to databases and logs, which do not take every character.
            and hello.node_id.isprintable()
            and len(hello.version) <= _MAX_NAME
            and 0 < len(hello.boot_id) <= _MAX_NAME
            and hello.boot_id.isprintable()
            and hello.protocol_version >= 1
        )
        return hello if is_sound else None
    return None
