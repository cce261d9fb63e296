"""The table of reconnects on real streams, and what a node says to a transfer that does not fit."""

import asyncio

import grpc
import pytest
from sqlalchemy import update
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.snapshot import Position
from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.conftest import Connect, ControlPlane, Rows, key, running, user
from tests.distribution.node import MODERN, Node, Received, connected, eventually

USER = resources_pb2.RESOURCE_KIND_USER
KEY = resources_pb2.RESOURCE_KIND_API_KEY


async def current(connect: Connect) -> Node:
    """Return a node that has the newest."""
    node = await connect(capabilities=MODERN)
    await node.hello()
    await node.follow()
    return node


async def reconnected(connect: Connect, former: Node) -> Received:
    """Open another stream with what a node had, and apply what it is sent first."""
    node = await connect(capabilities=MODERN)
    node.resume(former)
    await node.hello(boot_id="boot-2")
    received = await node.follow()
    former.resume(node)
    return received


async def is_current(control_plane: ControlPlane, revision: int) -> None:
    await eventually(lambda: control_plane.fleet.current.revision == revision)


async def test_who_comes_back_up_to_date_is_told_so(connect: Connect) -> None:
    node = await current(connect)

    received = await reconnected(connect, node)

    assert received.begin.intent == pb.TRANSFER_INTENT_NONE
    assert received.begin.reason == pb.TRANSFER_REASON_CURRENT


async def test_who_comes_back_older_gets_what_changed_and_nothing_else(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await current(connect)
    await rows.write(user("user-2"), key("key-2", "user-2"))
    await rows.delete((tables.ApiKey, "key-1"))
    await is_current(control_plane, await rows.change(tables.User, "user-2", tier="paid"))

    received = await reconnected(connect, node)

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert received.begin.reason == pb.TRANSFER_REASON_CHANGED
    assert received.resources.keys() == {(USER, "user-2"), (KEY, "key-2")}
    assert received.removed == {(KEY, "key-1")}
    assert received.secrets == {}


async def test_who_comes_back_after_a_restart_of_the_control_plane_gets_what_changed(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    async with running(store) as first, connected(first.address, capabilities=MODERN) as node:
        await node.hello()
        await node.follow()
    await rows.write(user("user-2"))
    deleted = await rows.delete((tables.ApiKey, "key-1"))
    async with running(store) as second, connected(second.address, capabilities=MODERN) as back:
        back.resume(node)
        await back.hello()
        received = await back.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert received.resources.keys() == {(USER, "user-2")}
    assert received.removed == {(KEY, "key-1")}
    assert back.applied.revision == deleted


async def test_who_comes_back_with_another_digest_gets_everything(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await current(connect)
    await is_current(control_plane, await rows.write(user("user-2")))
    node.applied.digest = b"?" * 32

    received = await reconnected(connect, node)

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_MISMATCH


async def test_who_is_older_than_what_deletions_are_told_for_gets_everything(
    store: Store, rows: Rows, control_plane: ControlPlane, connect: Connect
) -> None:
    node = await current(connect)
    deleted = await rows.delete((tables.ApiKey, "key-1"))
    async with store.ledger() as session:
        await session.exec(update(tables.RevisionCounter).values(compacted_revision=deleted))
    await is_current(control_plane, await rows.write(user("user-2")))

    received = await reconnected(connect, node)

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_COMPACTED
    assert received.begin.force
    assert (KEY, "key-1") not in node.held


async def test_who_is_ahead_is_waited_for_and_then_sent_on(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await current(connect)
    node.applied.revision += 1
    claims: list[Position] = []
    control_plane.fleet.on_position_ahead = claims.append
    ahead = await connect(capabilities=MODERN)
    ahead.resume(node)

    await ahead.hello("node-2")
    await eventually(lambda: bool(claims))
    await rows.write(user("user-2"))
    await rows.write(user("user-3"))
    received = await ahead.transfer()

    assert claims[0].revision == node.applied.revision
    assert received.begin.to.revision >= node.applied.revision


async def test_who_stays_ahead_is_sent_elsewhere_and_never_back(connect: Connect) -> None:
    node = await current(connect)
    ahead = await connect(capabilities=MODERN)
    ahead.resume(node)
    ahead.applied.revision += 100
    begun_s = asyncio.get_running_loop().time()

    await ahead.hello("node-2")
    status = await ahead.ended()

    assert status == grpc.StatusCode.UNAVAILABLE
    assert asyncio.get_running_loop().time() - begun_s > 1.5
    assert ahead.transfers == 0


async def test_a_later_epoch_counts_until_the_database_was_asked_again(connect: Connect) -> None:
    node = await connect(capabilities=MODERN)
    later = position_pb2.Position(config_epoch="tffffffffffff-000000000000", revision=1)
    node.applied.CopyFrom(later)

    await node.hello()
    received = await node.follow()

    assert received.begin.reason == pb.TRANSFER_REASON_EPOCH


async def test_changes_are_sent_as_such_while_a_stream_is_open(
    connect: Connect, rows: Rows
) -> None:
    node = await current(connect)

    for number in range(2, 6):
        revision = await rows.write(user(f"user-{number}"))
        received = await node.follow_to(revision)

        assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
        assert received.resources.keys() == {(USER, f"user-{number}")}


@pytest.mark.parametrize(
    ("reason", "name"),
    [(pb.NACK_REASON_DIGEST, "digest"), (pb.NACK_REASON_POSITION, "position")],
)
async def test_who_refuses_a_difference_that_does_not_fit_gets_everything_at_once(
    control_plane: ControlPlane,
    connect: Connect,
    rows: Rows,
    reason: pb.NackReason.ValueType,
    name: str,
) -> None:
    node = await current(connect)
    (watcher,) = control_plane.fleet.watchers()
    await rows.write(user("user-2"))
    refused = await node.transfer()

    await node.refuse(refused, reason)
    received = await node.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_MISMATCH
    assert received.begin.to == refused.begin.to
    assert (watcher.refusal, control_plane.fleet.tally.nacks_total[name]) == (name, 1)
    await eventually(lambda: watcher.behind_since_s is None)


@pytest.mark.parametrize(
    ("reason", "name"),
    [(pb.NACK_REASON_INVALID, "invalid"), (pb.NACK_REASON_GUARD, "guard")],
)
async def test_what_a_node_cannot_take_comes_again_only_with_something_newer(
    control_plane: ControlPlane,
    connect: Connect,
    rows: Rows,
    reason: pb.NackReason.ValueType,
    name: str,
) -> None:
    node = await current(connect)
    (watcher,) = control_plane.fleet.watchers()
    await rows.write(user("user-2"))
    await node.refuse(await node.transfer(), reason)
    await eventually(lambda: watcher.refusal == name)
    assert watcher.next_message(control_plane.fleet.now_s()) is None
    assert watcher.behind_since_s is not None
    assert watcher.refused_at is not None

    newer = await rows.write(user("user-3"))
    received = await node.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert received.resources.keys() == {(USER, "user-2"), (USER, "user-3")}
    assert received.begin.to.revision == newer


async def test_who_acknowledges_another_position_did_not_apply_it(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await current(connect)
    await rows.write(user("user-2"))
    received = await node.transfer()

    ack = pb.Ack(transfer_id=received.begin.transfer_id, applied=node.applied)
    await node.say(ack=ack)

    again = await node.follow()
    assert again.begin.intent == pb.TRANSFER_INTENT_FULL
    assert again.begin.to == received.begin.to


async def test_what_is_lacking_is_counted_from_when_the_oldest_of_it_was_published(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await current(connect)
    (watcher,) = control_plane.fleet.watchers()
    await eventually(lambda: watcher.behind_since_s is None)

    await is_current(control_plane, await rows.write(user("user-2")))
    first_s = watcher.behind_since_s
    await is_current(control_plane, await rows.write(user("user-3")))
    assert first_s is not None
    assert watcher.behind_since_s == first_s

    await node.follow()
    await eventually(lambda: watcher.applied.revision == 2)
    second_s = watcher.behind_since_s
    assert second_s is not None
    assert second_s > first_s
    await node.follow()
    await eventually(lambda: watcher.behind_since_s is None)


async def test_after_a_new_epoch_everybody_gets_everything(
    store: Store, rows: Rows, control_plane: ControlPlane, connect: Connect
) -> None:
    node = await current(connect)
    async with store.ledger() as session:
        await session.exec(
            update(tables.RevisionCounter).values(config_epoch="tffffffffffff-000000000000")
        )

    control_plane.publisher.wake()
    received = await node.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_EPOCH
    assert received.begin.to.revision == node.applied.revision


async def test_a_database_that_was_set_back_within_an_epoch_is_not_published(
    store: Store, rows: Rows, control_plane: ControlPlane, connect: Connect
) -> None:
    node = await current(connect)
    newest = await rows.write(user("user-2"))
    await node.follow_to(newest)
    claims: list[Position] = []
    control_plane.fleet.on_position_ahead = claims.append

    async with store.ledger() as session:
        await session.exec(update(tables.RevisionCounter).values(revision=newest - 1))
    control_plane.publisher.wake()
    await eventually(lambda: bool(claims))

    assert claims[0].revision == newest
    assert control_plane.fleet.current.revision == newest
