"""A data plane as the control plane sees it: a real stream, driven line by line by a test."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain import digest

DEADLINE_S = 5.0


def digest_of(resources: Iterable[resources_pb2.Resource]) -> bytes:
    """Return the digest of `resources` as a data plane computes it."""
    total = 0
    for each in resources:
        added = digest.resource_hash(each.kind, each.id, each.revision, each.payload)
        total = digest.with_resource(total, added)
    return digest.digest_bytes(total)


@dataclass
class Received:
    """A transfer from its begin to its end."""

    begin: pb.TransferBegin
    chunks: list[pb.TransferChunk] = field(default_factory=list)

    @property
    def resources(self) -> dict[tuple[int, str], resources_pb2.Resource]:
        return {(each.kind, each.id): each for chunk in self.chunks for each in chunk.resources}

    @property
    def secrets(self) -> dict[str, pb.SecretBundle]:
        return {each.credential_id: each for chunk in self.chunks for each in chunk.secrets}


class Node:
    """One stream. What arrives beside a transfer is kept: revocations and heartbeats."""

    def __init__(self, channel: grpc.aio.Channel, token: str = "") -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.call = pb_grpc.ConfigServiceStub(channel).StreamConfig(metadata=metadata)
        self.revocations: list[pb.Revocation] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.applied = position_pb2.Position()

    async def say(self, **message: object) -> None:
        await asyncio.wait_for(
            self.call.write(pb.StreamConfigRequest(**message)),  # type: ignore[arg-type] # one of the oneof
            DEADLINE_S,
        )

    async def hello(self, node_id: str = "node-1", boot_id: str = "boot-1") -> pb.Welcome:
        await self.say(
            hello=pb.Hello(
                node_id=node_id,
                version="0.1.0",
                protocol_version=1,
                applied=self.applied,
                boot_id=boot_id,
            )
        )
        first = await self.read()
        assert first.HasField("welcome")
        return first.welcome

    async def read(self, deadline_s: float = DEADLINE_S) -> pb.StreamConfigResponse:
        message = await asyncio.wait_for(self.call.read(), deadline_s)
        assert isinstance(message, pb.StreamConfigResponse), "the stream ended"
        if message.HasField("revocation"):
            self.revocations.append(message.revocation)
        if message.HasField("heartbeat"):
            self.heartbeats.append(message.heartbeat)
        return message

    async def read_until(
        self, holds: Callable[[pb.StreamConfigResponse], bool], deadline_s: float = DEADLINE_S
    ) -> pb.StreamConfigResponse:
        async with asyncio.timeout(deadline_s):
            while True:
                message = await self.read(deadline_s)
                if holds(message):
                    return message

    async def transfer(self, deadline_s: float = DEADLINE_S) -> Received:
        """Read the next transfer, check its frame, and answer nothing."""
        begun = await self.read_until(lambda each: each.HasField("transfer_begin"), deadline_s)
        received = Received(begun.transfer_begin)
        while True:
            message = await self.read(deadline_s)
            if message.HasField("transfer_chunk"):
                assert message.transfer_chunk.transfer_id == received.begin.transfer_id
                received.chunks.append(message.transfer_chunk)
            if message.HasField("transfer_end"):
                assert message.transfer_end.chunk_count == len(received.chunks)
                return received

    async def apply(self, received: Received) -> None:
        if received.begin.intent == pb.TRANSFER_INTENT_FULL:
            assert digest_of(received.resources.values()) == received.begin.to.digest
        self.applied = received.begin.to
        await self.say(
            ack=pb.Ack(transfer_id=received.begin.transfer_id, applied=received.begin.to)
        )

    async def follow(self, deadline_s: float = DEADLINE_S) -> Received:
        """Read the next transfer and apply it."""
        received = await self.transfer(deadline_s)
        await self.apply(received)
        return received

    async def follow_to(self, revision: int, deadline_s: float = DEADLINE_S) -> Received:
        """Apply transfers until `revision` is reached."""
        async with asyncio.timeout(deadline_s):
            while True:
                received = await self.follow(deadline_s)
                if received.begin.to.revision >= revision:
                    return received

    async def ended(self) -> grpc.StatusCode:
        """Read to the end of the stream and return its status."""
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        return await asyncio.wait_for(self.call.code(), DEADLINE_S)


@asynccontextmanager
async def connected(address: str, token: str = "") -> AsyncIterator[Node]:
    """Open a stream on a connection of its own and close both."""
    async with grpc.aio.insecure_channel(address) as channel:
        node = Node(channel, token)
        try:
            yield node
        finally:
            node.call.cancel()


async def eventually(holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait until `holds()`."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)  # polled: what is awaited happens in another task
