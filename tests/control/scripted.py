"""A control plane that plays a script, and the transfers that it sends."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import grpc
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2 as res

from tests.control.configurations import EPOCH, position_of


def full(
    transfer_id: int,
    resources: list[res.Resource],
    revision: int,
    *,
    force: bool = False,
    secrets: Iterable[pb.SecretBundle] = (),
) -> list[pb.StreamConfigResponse]:
    """Return a FULL transfer in two chunks."""
    half = len(resources) // 2
    begin = pb.TransferBegin(
        transfer_id=transfer_id,
        intent=pb.TRANSFER_INTENT_FULL,
        reason=pb.TRANSFER_REASON_CHANGED,
        to=position_of(resources, revision),
        force=force,
    )
    chunks = [
        pb.TransferChunk(transfer_id=transfer_id, resources=resources[:half], secrets=secrets),
        pb.TransferChunk(transfer_id=transfer_id, resources=resources[half:]),
    ]
    end = pb.TransferEnd(transfer_id=transfer_id, chunk_count=2)
    return [
        pb.StreamConfigResponse(transfer_begin=begin),
        *(pb.StreamConfigResponse(transfer_chunk=chunk) for chunk in chunks),
        pb.StreamConfigResponse(transfer_end=end),
    ]


def delta(
    transfer_id: int,
    old: position_pb2.Position,
    to: position_pb2.Position,
    changed: list[res.Resource],
    removed: list[res.ResourceRef],
) -> list[pb.StreamConfigResponse]:
    """Return a DELTA transfer in one chunk."""
    begin = pb.TransferBegin(transfer_id=transfer_id, intent=pb.TRANSFER_INTENT_DELTA, to=to)
    getattr(begin, "from").CopyFrom(old)
    chunk = pb.TransferChunk(transfer_id=transfer_id, resources=changed, removed=removed)
    return [
        pb.StreamConfigResponse(transfer_begin=begin),
        pb.StreamConfigResponse(transfer_chunk=chunk),
        pb.StreamConfigResponse(
            transfer_end=pb.TransferEnd(transfer_id=transfer_id, chunk_count=1)
        ),
    ]


def none(transfer_id: int, to: position_pb2.Position) -> list[pb.StreamConfigResponse]:
    """Return a transfer of nothing."""
    begin = pb.TransferBegin(transfer_id=transfer_id, intent=pb.TRANSFER_INTENT_NONE, to=to)
    end = pb.TransferEnd(transfer_id=transfer_id)
    return [
        pb.StreamConfigResponse(transfer_begin=begin),
        pb.StreamConfigResponse(transfer_end=end),
    ]


def goodbye(
    reason: pb.GoodbyeReason.ValueType = pb.GOODBYE_REASON_AGE, ends_in_ms: int = 10_000
) -> pb.StreamConfigResponse:
    """Return the wish that the node opens another stream."""
    return pb.StreamConfigResponse(goodbye=pb.Goodbye(reason=reason, ends_in_ms=ends_in_ms))


def revocation(key_id: str, revision: int, *, terminate: bool = False) -> pb.StreamConfigResponse:
    """Return the revocation of a key."""
    return pb.StreamConfigResponse(
        revocation=pb.Revocation(
            revocation_id=f"{key_id}:{revision}",
            revision=revision,
            config_epoch=EPOCH,
            subject=res.ResourceRef(kind=res.RESOURCE_KIND_API_KEY, id=key_id),
            terminate_streams=terminate,
        )
    )


@dataclass
class ScriptedControlPlane(pb_grpc.ConfigServiceServicer):
    """Says what a test puts in `to_say` and keeps what it hears; `None` ends the stream."""

    heartbeat_ms: int = 5_000
    name: str = "cp-1"
    # 1: one of the first version, which says nothing of it.
    protocol_version: int = 2
    to_say: asyncio.Queue[pb.StreamConfigResponse | None] = field(default_factory=asyncio.Queue)
    heard: asyncio.Queue[pb.StreamConfigRequest] = field(default_factory=asyncio.Queue)
    tokens: list[str] = field(default_factory=list)
    # Streams whose nodes said that they have nothing more to say.
    finished: int = 0

    async def StreamConfig(  # noqa: N802 - the aio form of gRPC's name
        self,
        request_iterator: AsyncIterator[pb.StreamConfigRequest],
        context: grpc.aio.ServicerContext[pb.StreamConfigRequest, pb.StreamConfigResponse],
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        """Serve one stream."""
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.append(str(metadata.get("authorization")))
        welcome = pb.Welcome(
            control_plane_id=self.name,
            heartbeat_interval_ms=self.heartbeat_ms,
            protocol_version=self.protocol_version if self.protocol_version > 1 else 0,
        )
        yield pb.StreamConfigResponse(welcome=welcome)
        listening = asyncio.create_task(self._listen(request_iterator))
        try:
            while (message := await self.to_say.get()) is not None:
                yield message
        finally:
            listening.cancel()

    async def _listen(self, requests: AsyncIterator[pb.StreamConfigRequest]) -> None:
        async for request in requests:
            self.heard.put_nowait(request)
        self.finished += 1

    def say(self, *messages: pb.StreamConfigResponse | None) -> None:
        """Say `messages` as soon as a node listens."""
        for message in messages:
            self.to_say.put_nowait(message)

    async def hear(self, kind: str, deadline_seconds: float = 5.0) -> pb.StreamConfigRequest:
        """Return the next message of `kind`; others are passed over."""
        async with asyncio.timeout(deadline_seconds):
            while True:
                request = await self.heard.get()
                if request.WhichOneof("message") == kind:
                    return request
