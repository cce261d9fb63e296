"""Dialogues between a node and a control plane on a real stream."""

import grpc
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.conftest import Connect, ControlPlane, Rows, running, user
from tests.distribution.node import connected, eventually


async def test_a_new_node_gets_everything_with_the_secret_outside_the_digest(
    connect: Connect,
) -> None:
    node = await connect()

    welcome = await node.hello()
    received = await node.follow()

    assert welcome.heartbeat_interval_ms == 5_000
    assert welcome.current == received.begin.to
    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_FIRST
    assert len(received.resources) == 7
    assert received.secrets["credential-1"].secret == b"sk-provider-secret"
    router = received.resources[resources_pb2.RESOURCE_KIND_ROUTER, "router-1"]
    rules = resources_pb2.Router.FromString(router.payload).rules
    assert [each.id for each in rules] == ["rule-1", "rule-2"]


async def test_a_change_reaches_a_node_within_a_second(connect: Connect, rows: Rows) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    revision = await rows.write(user("user-2"))
    received = await node.follow_to(revision, deadline_s=1.0)

    assert (resources_pb2.RESOURCE_KIND_USER, "user-2") in received.resources
    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    # It knows nothing but everything: it is of version 1.
    assert received.begin.reason == pb.TRANSFER_REASON_UNSUITED


async def test_a_change_that_no_node_needs_moves_the_position_alone(
    connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    at = node.applied.digest
    revision = await rows.write(
        tables.Administrator(
            id="admin-1",
            name="ops",
            role=1,
            token_sha256=b"t" * 32,
            created_at=user().created_at,
            updated_at=user().created_at,
        )
    )
    received = await node.follow_to(revision)

    assert received.begin.intent == pb.TRANSFER_INTENT_NONE
    assert received.begin.to.digest == at
    assert received.chunks == []


async def test_a_node_that_is_up_to_date_gets_nothing_but_the_word(connect: Connect) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    again = await connect()
    again.applied = node.applied

    await again.hello("node-2")
    received = await again.transfer()

    assert received.begin.intent == pb.TRANSFER_INTENT_NONE
    assert received.begin.reason == pb.TRANSFER_REASON_CURRENT


async def test_a_node_of_another_epoch_gets_everything(connect: Connect) -> None:
    node = await connect()
    node.applied.config_epoch = "another database"
    node.applied.revision = 1_000

    await node.hello()
    received = await node.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_EPOCH


async def test_a_node_with_the_same_revision_and_another_digest_gets_everything(
    connect: Connect,
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    damaged = await connect()
    damaged.applied.CopyFrom(node.applied)
    damaged.applied.digest = b"?" * 32

    await damaged.hello("node-2")
    received = await damaged.transfer()

    assert received.begin.reason == pb.TRANSFER_REASON_MISMATCH
    assert received.begin.intent == pb.TRANSFER_INTENT_FULL


async def test_a_node_that_is_ahead_of_this_control_plane_is_not_set_back(
    connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    ahead = await connect()
    ahead.applied.CopyFrom(node.applied)
    ahead.applied.revision += 2
    ahead.applied.digest = b"!" * 32

    await ahead.hello("node-2")
    await rows.write(user("user-2"))
    await rows.write(user("user-3"))
    last = await rows.write(user("user-4"))
    received = await ahead.transfer()

    assert received.begin.to.revision == last


async def test_a_slow_node_skips_revisions(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    unanswered = await node.transfer()

    for number in range(2, 6):
        last = await rows.write(user(f"user-{number}"))
    await eventually(lambda: control_plane.fleet.current.revision == last)
    await node.apply(unanswered)
    received = await node.follow()

    assert received.begin.to.revision == last
    assert received.begin.transfer_id == unanswered.begin.transfer_id + 1


async def test_a_refused_configuration_comes_again_only_when_it_is_newer(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    standing = node.applied

    refused_revision = await rows.write(user("user-2"))
    refused = await node.transfer()
    await node.say(
        nack=pb.Nack(
            transfer_id=refused.begin.transfer_id,
            applied=standing,
            reason=pb.NACK_REASON_INVALID,
            problems=["router router-1: rule without provider"],
        )
    )
    watcher = control_plane.fleet.watchers()[0]
    await eventually(lambda: bool(watcher.problems))
    silent = watcher.next_message(control_plane.fleet.now_s())
    newer_revision = await rows.write(user("user-3"))
    newer = await node.follow()
    await eventually(lambda: watcher.applied.revision == newer_revision)

    assert refused.begin.to.revision == refused_revision
    assert silent is None
    assert newer.begin.to.revision == newer_revision
    assert watcher.problems == ()


async def test_a_newer_stream_of_a_node_replaces_the_older(
    control_plane: ControlPlane, connect: Connect
) -> None:
    older, newer = await connect(), await connect()
    await older.hello()

    await newer.hello(boot_id="boot-2")

    assert await older.ended() == grpc.StatusCode.UNAVAILABLE
    await newer.follow()
    assert [each.boot_id for each in control_plane.fleet.watchers()] == ["boot-2"]


async def test_a_stream_begins_with_hello(connect: Connect) -> None:
    node = await connect()

    await node.say(heartbeat=pb.Heartbeat())

    assert await node.ended() == grpc.StatusCode.INVALID_ARGUMENT


async def test_hello_is_said_once(connect: Connect) -> None:
    node = await connect()
    await node.hello()

    await node.say(hello=pb.Hello(node_id="other", boot_id="b", protocol_version=1))

    assert await node.ended() == grpc.StatusCode.INVALID_ARGUMENT


async def test_no_more_nodes_than_allowed(store: Store, rows: Rows) -> None:
    await rows.basics()
    async with (
        running(store, max_nodes=1) as started,
        connected(started.address) as first,
        connected(started.address) as second,
    ):
        await first.hello("node-1")
        await second.say(hello=pb.Hello(node_id="node-2", boot_id="b", protocol_version=1))

        assert await second.ended() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_both_sides_hear_heartbeats_and_silence_ends_a_stream(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    async with running(store, interval_s=0.1) as started, connected(started.address) as node:
        await node.hello()
        await node.follow()
        watcher = started.fleet.watchers()[0]
        heard = pb.Heartbeat(position=node.applied, unreported_records=7)

        for count in range(1, 6):
            await node.say(heartbeat=heard)
            await node.read_until(lambda each: each.HasField("heartbeat"))
            assert len(node.heartbeats) == count
        await eventually(lambda: watcher.unreported_records == 7)

        assert node.heartbeats[-1].position == node.applied
        assert await node.ended() == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: started.fleet.watchers() == [])


async def test_a_node_that_is_elsewhere_than_it_said_gets_everything(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    async with running(store, interval_s=0.5) as started, connected(started.address) as node:
        await node.hello()
        await node.follow()

        await node.say(heartbeat=pb.Heartbeat(position=position_pb2.Position()))
        received = await node.transfer()

        assert received.begin.intent == pb.TRANSFER_INTENT_FULL
