"""Streams do not last for ever, and who is asked to leave loses nothing."""

import asyncio

import grpc
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.store.database import Store
from tests.distribution.conftest import Connect, ControlPlane, Rows, running, user
from tests.distribution.node import MODERN, connected, eventually


async def test_a_stream_of_a_certain_age_is_exchanged_without_a_gap(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    async with (
        running(store, stream_life_s=1.0) as started,
        connected(started.address, capabilities=MODERN) as older,
        connected(started.address, capabilities=MODERN) as newer,
    ):
        begun_s = asyncio.get_running_loop().time()
        await older.hello()
        await older.follow()
        await older.read_until(lambda each: each.HasField("goodbye"))
        took_s = asyncio.get_running_loop().time() - begun_s

        # What it says until it leaves is heard, and what is revoked is told.
        revoking = asyncio.create_task(
            started.fleet.revoke(4, "key-1", 99, terminate_streams=False, wait_ms=5_000)
        )
        told = await older.read_until(lambda each: each.HasField("revocation"))
        ack = pb.RevocationAck(revocation_id=told.revocation.revocation_id, is_kept=True)
        await older.say(revocation_ack=ack)
        receipt = await revoking
        newer.resume(older)
        await newer.hello()
        received = await newer.follow()

        assert older.goodbyes == [pb.Goodbye(reason=pb.GOODBYE_REASON_AGE, ends_in_ms=10_000)]
        assert 0.8 <= took_s < 4
        assert [(each.node, each.is_kept) for each in receipt.applied] == [("node-1", True)]
        assert received.begin.intent == pb.TRANSFER_INTENT_NONE
        assert await older.ended() == grpc.StatusCode.OK


async def test_who_does_not_understand_goodbye_is_ended_at_that_age(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    async with (
        running(store, stream_life_s=0.5) as started,
        connected(started.address) as node,
    ):
        await node.hello()
        await node.follow()

        assert await node.ended() == grpc.StatusCode.OK
        assert node.goodbyes == []


async def test_who_was_asked_to_leave_is_not_begun_anything_new_with(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect(capabilities=MODERN)
    await node.hello()
    await node.follow()
    (watcher,) = control_plane.fleet.watchers()
    watcher.leave(pb.GOODBYE_REASON_AGE, within_s=0.3, now_s=control_plane.fleet.now_s())

    revision = await rows.write(user("user-2"))
    await eventually(lambda: control_plane.fleet.current.revision == revision)
    status = await node.ended()

    assert status == grpc.StatusCode.OK
    assert node.transfers == 1
    assert [each.reason for each in node.goodbyes] == [pb.GOODBYE_REASON_AGE]


async def test_a_control_plane_that_stops_says_so_and_takes_nobody_new(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node, late = await connect(capabilities=MODERN), await connect(capabilities=MODERN)
    await node.hello()
    await node.follow()

    control_plane.fleet.close()
    await node.read_until(lambda each: each.HasField("goodbye"))
    await late.say(hello=pb.Hello(node_id="late", boot_id="b", protocol_version=2))

    assert node.goodbyes == [pb.Goodbye(reason=pb.GOODBYE_REASON_STOPPING, ends_in_ms=1_000)]
    assert await late.ended() == grpc.StatusCode.UNAVAILABLE
    assert await node.ended() == grpc.StatusCode.OK
