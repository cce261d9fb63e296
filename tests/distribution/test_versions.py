"""Peers one version older and one newer follow the configuration all the same."""

import asyncio

import grpc.aio
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from controlplane.rpc.config import ConfigServicer
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.store.database import Store
from tests.distribution.conftest import SEALER, Connect, ControlPlane, Rows, user
from tests.distribution.node import DEADLINE_S, MODERN, connected

METHOD = "/tollkeeper.config.v1.ConfigService/StreamConfig"
# Field 15 of a request, which no version of the contract has: tag 122, length 2.
UNKNOWN_MESSAGE = b"\x7a\x02hi"


async def test_a_node_of_version_1_gets_wholes_with_secrets_in_clear(
    connect: Connect, rows: Rows
) -> None:
    node = await connect()
    welcome = await node.hello()
    first = await node.follow()

    revision = await rows.write(user("user-2"))
    second = await node.follow_to(revision)

    assert welcome.protocol_version == 1
    assert first.secrets["credential-1"].secret == b"sk-provider-secret"
    assert first.secrets["credential-1"].sealed == b""
    assert second.begin.intent == pb.TRANSFER_INTENT_FULL
    assert len(second.resources) == 8


async def test_a_node_of_version_1_that_is_told_to_go_is_just_cut_off(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    control_plane.fleet.close()

    assert await node.ended() == grpc.StatusCode.UNAVAILABLE
    assert node.goodbyes == []


async def test_a_newer_node_is_spoken_to_as_far_as_both_understand(
    control_plane: ControlPlane, rows: Rows
) -> None:
    async with grpc.aio.insecure_channel(control_plane.address) as channel:
        call: grpc.aio.StreamStreamCall[bytes, pb.StreamConfigResponse] = channel.stream_stream(
            METHOD,
            request_serializer=None,
            response_deserializer=pb.StreamConfigResponse.FromString,
        )()

        async def read() -> pb.StreamConfigResponse:
            message = await asyncio.wait_for(call.read(), DEADLINE_S)
            assert isinstance(message, pb.StreamConfigResponse)
            return message

        async def applied() -> pb.TransferBegin:
            begin = pb.TransferBegin()
            while True:
                message = await read()
                if message.HasField("transfer_begin"):
                    begin = message.transfer_begin
                if message.HasField("transfer_end"):
                    ack = pb.Ack(transfer_id=begin.transfer_id, applied=begin.to)
                    await call.write(pb.StreamConfigRequest(ack=ack).SerializeToString())
                    return begin

        hello = pb.Hello(
            node_id="node-1",
            boot_id="boot-1",
            protocol_version=3,
            capabilities=[pb.CAPABILITY_DELTA, 99],  # type: ignore[list-item] # of a newer version
        )
        await call.write(pb.StreamConfigRequest(hello=hello).SerializeToString() + UNKNOWN_MESSAGE)
        welcome = (await read()).welcome
        await applied()
        await call.write(UNKNOWN_MESSAGE)
        await rows.write(user("user-2"))
        changed = await applied()
        call.cancel()

    assert welcome.protocol_version == 2
    assert changed.intent == pb.TRANSFER_INTENT_DELTA


async def test_what_a_node_does_not_name_is_not_used(connect: Connect, rows: Rows) -> None:
    node = await connect(capabilities=(pb.CAPABILITY_SEALED_SECRETS,))
    await node.hello()
    first = await node.follow()

    second = await node.follow_to(await rows.write(user("user-2")))

    assert node.open(first.secrets["credential-1"]) == b"sk-provider-secret"
    assert second.begin.intent == pb.TRANSFER_INTENT_FULL
    assert second.begin.reason == pb.TRANSFER_REASON_UNSUITED


async def test_the_generated_function_serves_the_same(store: Store, rows: Rows) -> None:
    await rows.basics()
    fleet = Fleet(secret_opener(SEALER))
    await Publisher(store, fleet).load()
    server = grpc.aio.server()
    servicer = ConfigServicer(fleet, control_plane_id="cp-1", version="0.1.0")
    pb_grpc.add_ConfigServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connected(f"127.0.0.1:{port}", capabilities=MODERN) as node:
        await node.hello()
        received = await node.follow()
    await server.stop(0)

    assert len(received.resources) == 7
    assert fleet.tally.transfers_total["full"] == 1
    assert fleet.tally.transfer_bytes_total > 0
