"""A data plane as the control plane sees it: a real stream, driven line by line by a test."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain import digest

DEADLINE_S = 5.0
MODERN = (
    pb.CAPABILITY_DELTA,
    pb.CAPABILITY_SEALED_SECRETS,
    pb.CAPABILITY_GOODBYE,
)
"""What a node of version 2 understands."""
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


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

    @property
    def removed(self) -> set[tuple[int, str]]:
        return {(each.kind, each.id) for chunk in self.chunks for each in chunk.removed}


class Node:
    """One stream. What arrives beside a transfer is kept: revocations, heartbeats and goodbyes; `held` is a dictionary."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        token: str = "",
        capabilities: Sequence[pb.Capability.ValueType] = (),
        protocol_version: int | None = None,
    ) -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.call = pb_grpc.ConfigServiceStub(channel).StreamConfig(metadata=metadata)
        self.capabilities = capabilities
        self.protocol_version = protocol_version or (2 if capabilities else 1)
        self.sealing_key = X25519PrivateKey.generate()
        self.revocations: list[pb.Revocation] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.goodbyes: list[pb.Goodbye] = []
        self.transfers = 0
        self.applied = position_pb2.Position()
        self.held: dict[tuple[int, str], resources_pb2.Resource] = {}

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
                protocol_version=self.protocol_version,
                applied=self.applied,
                boot_id=boot_id,
                capabilities=self.capabilities,
                sealing_key=self.public_key(),
            )
        )
        first = await self.read()
        assert first.HasField("welcome")
        return first.welcome

    def public_key(self) -> bytes:
        if pb.CAPABILITY_SEALED_SECRETS not in self.capabilities:
            return b""
        return self.sealing_key.public_key().public_bytes_raw()

    def open(self, bundle: pb.SecretBundle) -> bytes:
        """Return the secret of a sealed bundle."""
        info = f"tollkeeper secret 1\0{bundle.credential_id}\0{bundle.version}".encode()
        return SUITE.decrypt(bundle.sealed, self.sealing_key, info=info)

    def resume(self, former: "Node") -> None:
        """Begin with what another stream of this node had."""
        self.applied, self.held = former.applied, dict(former.held)

    async def read(self, deadline_s: float = DEADLINE_S) -> pb.StreamConfigResponse:
        message = await asyncio.wait_for(self.call.read(), deadline_s)
        assert isinstance(message, pb.StreamConfigResponse), "the stream ended"
        if message.HasField("revocation"):
            self.revocations.append(message.revocation)
        if message.HasField("heartbeat"):
            self.heartbeats.append(message.heartbeat)
        if message.HasField("transfer_begin"):
            self.transfers += 1
        if message.HasField("goodbye"):
            self.goodbyes.append(message.goodbye)
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
        """Take a transfer over as a node must, and check the digest of all that is held then."""
        begin = received.begin
        if begin.intent == pb.TRANSFER_INTENT_FULL:
            self.held = {}
        if begin.intent == pb.TRANSFER_INTENT_DELTA:
            assert getattr(begin, "from") == self.applied
        for key in received.removed:
            self.held.pop(key, None)
        self.held |= received.resources
        if begin.intent != pb.TRANSFER_INTENT_NONE:
            assert digest_of(self.held.values()) == begin.to.digest
            assert begin.resource_count == len(received.resources)
            payloads = (each.payload for each in received.resources.values())
            assert begin.payload_bytes == sum(map(len, payloads))
        self.applied = received.begin.to
        await self.say(
            ack=pb.Ack(transfer_id=received.begin.transfer_id, applied=received.begin.to)
        )

    async def refuse(self, received: Received, reason: pb.NackReason.ValueType) -> None:
        """Refuse a transfer whole."""
        await self.say(
            nack=pb.Nack(
                transfer_id=received.begin.transfer_id,
                applied=self.applied,
                reason=reason,
                problems=["what is wrong"],
            )
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
            with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):
                while True:
                    await self.read()
        return await asyncio.wait_for(self.call.code(), DEADLINE_S)


@asynccontextmanager
async def connected(
    address: str,
    token: str = "",
    capabilities: Sequence[pb.Capability.ValueType] = (),
    protocol_version: int | None = None,
) -> AsyncIterator[Node]:
    """Open a stream on a connection of its own and close both; by default one of a node of version 1."""
    async with grpc.aio.insecure_channel(address) as channel:
        node = Node(channel, token, capabilities, protocol_version)
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
