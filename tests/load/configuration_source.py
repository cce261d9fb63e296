"""A control plane that sends a node a large configuration, a change of one key, and everything again, all of it changed.

    python -m tests.load.configuration_source KEYS

Says its port on stdout; when the node has answered all three, how long each took from its first message to the answer, as
JSON. It serves one node.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import grpc.aio
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2 as res

from dataplane.domain.digest import digest_of, resource_hash
from tests.control.large import api_key, large_configuration

EPOCH: Final = "t000000000001-000000000001"
_RESOURCES_A_CHUNK: Final = 1_000
_ANSWER_S: Final = 600.0
# What a transfer leaves behind is tidied up meanwhile.
_PAUSE_S: Final = 2.0

Requests = AsyncIterator[pb.StreamConfigRequest]
Messages = list[pb.StreamConfigResponse]


def position_of(resources: list[res.Resource], revision: int) -> position_pb2.Position:
    """Return the position of a content."""
    hashes = (resource_hash(each.kind, each.id, each.revision, each.payload) for each in resources)
    return position_pb2.Position(config_epoch=EPOCH, revision=revision, digest=digest_of(hashes))


def transfer(begin: pb.TransferBegin, sent: list[res.Resource]) -> Messages:
    """Return the messages of a transfer."""
    starts = range(0, len(sent), _RESOURCES_A_CHUNK)
    chunks = [
        pb.TransferChunk(
            transfer_id=begin.transfer_id, resources=sent[start : start + _RESOURCES_A_CHUNK]
        )
        for start in starts
    ]
    end = pb.TransferEnd(transfer_id=begin.transfer_id, chunk_count=len(chunks))
    return [
        pb.StreamConfigResponse(transfer_begin=begin),
        *(pb.StreamConfigResponse(transfer_chunk=chunk) for chunk in chunks),
        pb.StreamConfigResponse(transfer_end=end),
    ]


def three_transfers(keys: int) -> dict[str, Messages]:
    """Return everything, the change of one key, and everything again with other revisions."""
    first = list(large_configuration(keys))
    changed = api_key(0, revision=2, tier="paid")
    second = [
        changed if (each.kind, each.id) == (changed.kind, changed.id) else each for each in first
    ]
    third = [_with_revision(each, 3) for each in second]
    full, delta = pb.TRANSFER_INTENT_FULL, pb.TRANSFER_INTENT_DELTA
    begin_delta = pb.TransferBegin(transfer_id=2, intent=delta, to=position_of(second, 2))
    getattr(begin_delta, "from").CopyFrom(position_of(first, 1))
    return {
        "first": transfer(
            pb.TransferBegin(transfer_id=1, intent=full, to=position_of(first, 1)), first
        ),
        "one_key": transfer(begin_delta, [changed]),
        "all_changed": transfer(
            pb.TransferBegin(transfer_id=3, intent=full, to=position_of(third, 3)), third
        ),
    }


def _with_revision(resource: res.Resource, revision: int) -> res.Resource:
    return res.Resource(
        kind=resource.kind, id=resource.id, revision=revision, payload=resource.payload
    )


@dataclass
class Source(pb_grpc.ConfigServiceServicer):
    """Sends the transfers one after another, each when the one before is answered."""

    transfers: dict[str, Messages]
    took_s: dict[str, float] = field(default_factory=dict)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    refused: list[str] = field(default_factory=list)

    async def StreamConfig(  # noqa: N802 - the aio form of gRPC's name
        self,
        request_iterator: Requests,
        context: grpc.aio.ServicerContext[pb.StreamConfigRequest, pb.StreamConfigResponse],
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        """Serve the node."""
        yield pb.StreamConfigResponse(
            welcome=pb.Welcome(heartbeat_interval_ms=60_000, protocol_version=2)
        )
        for name in list(self.transfers):
            began_s = time.perf_counter()
            for message in self.transfers.pop(name):
                yield message
            async with asyncio.timeout(_ANSWER_S):
                await self._hear(request_iterator)
            self.took_s[name] = time.perf_counter() - began_s
            await asyncio.sleep(_PAUSE_S)
        self.is_over.set()
        await asyncio.Event().wait()

    async def _hear(self, requests: Requests) -> None:
        async for request in requests:
            if request.HasField("nack"):
                self.refused.extend(request.nack.problems or ["refused"])
            if request.HasField("ack") or request.HasField("nack"):
                return


async def serve(keys: int) -> int:
    """Serve one node; return the exit code."""
    source = Source(three_transfers(keys))
    server = grpc.aio.server()
    pb_grpc.add_ConfigServiceServicer_to_server(source, server)
    _say({"port": server.add_insecure_port("127.0.0.1:0")})
    await server.start()
    await source.is_over.wait()
    _say({"took_s": source.took_s, "refused": source.refused})
    await server.stop(0)
    return 1 if source.refused else 0


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(int(sys.argv[1]))))
