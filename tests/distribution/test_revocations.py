"""Revocations overtake everything, and their receipts tell the truth."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.revocations import Receipt
from controlplane.rpc.revocations import keep_revocation
from controlplane.snapshots.orders import RecentOrders, RevocationOrder
from controlplane.snapshots.peers import Ask, News
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import EVERYTHING
from controlplane.snapshots.snapshot import Position
from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.conftest import Connect, ControlPlane, Rows, key, running, user
from tests.distribution.node import MODERN, Node, connected, eventually

KEY = resources_pb2.RESOURCE_KIND_API_KEY


def revoke(
    control_plane: ControlPlane, revision: int, wait_ms: int = 2_000
) -> asyncio.Task[Receipt]:
    """Begin to revoke key-1."""
    return asyncio.create_task(
        control_plane.fleet.revoke(KEY, "key-1", revision, terminate_streams=True, wait_ms=wait_ms)
    )


async def obey(node: Node, *, is_kept: bool = False) -> pb.Revocation:
    """Read up to the next revocation and acknowledge it."""
    message = await node.read_until(lambda each: each.HasField("revocation"))
    revocation_id = message.revocation.revocation_id
    await node.say(revocation_ack=pb.RevocationAck(revocation_id=revocation_id, is_kept=is_kept))
    return message.revocation


async def test_a_receipt_names_who_obeys_and_who_is_missing(
    control_plane: ControlPlane, connect: Connect
) -> None:
    first, second, deaf = await connect(), await connect(), await connect()
    for name, node in (("node-1", first), ("node-2", second), ("node-3", deaf)):
        await node.hello(name)
        await node.follow()

    waiting = revoke(control_plane, revision=1_000, wait_ms=300)
    heard = await obey(first)
    await obey(second)
    receipt = await waiting

    assert heard.subject == resources_pb2.ResourceRef(kind=KEY, id="key-1")
    assert heard.terminate_streams
    assert heard.revision == receipt.revision == 1_000
    assert [each.node for each in receipt.applied] == ["node-1", "node-2"]
    assert all(0 <= each.ms < 300 for each in receipt.applied)
    assert receipt.missing == ("node-3",)


async def test_a_receipt_is_there_as_soon_as_all_obey(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    waiting = revoke(control_plane, revision=1_000, wait_ms=30_000)
    await obey(node)
    receipt = await asyncio.wait_for(waiting, 2)

    assert receipt.missing == ()


async def test_who_does_not_wait_gets_a_receipt_at_once(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    receipt = await revoke(control_plane, revision=1_000, wait_ms=0)

    assert receipt.missing == ("node-1",)
    assert (await obey(node)).revision == 1_000


async def test_a_transfer_that_contains_the_revocation_counts_as_obedience(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    revision = await rows.change(tables.ApiKey, "key-1", revoked=True)
    waiting = revoke(control_plane, revision)
    await node.follow_to(revision)
    receipt = await waiting

    assert [each.node for each in receipt.applied] == ["node-1"]


async def test_without_nodes_a_receipt_is_empty(control_plane: ControlPlane) -> None:
    receipt = await revoke(control_plane, revision=1_000)

    assert receipt == Receipt(1_000)


async def test_a_revocation_overtakes_a_large_transfer_that_is_not_read(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    large = await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    await eventually(lambda: control_plane.fleet.current.revision == large)
    node = await connect()
    await node.hello()
    await node.read_until(lambda each: each.HasField("transfer_begin"))
    chunks = 0

    waiting = revoke(control_plane, revision=1_000)
    message = await node.read()
    while not message.HasField("revocation"):
        assert message.HasField("transfer_chunk")
        chunks += 1
        message = await node.read()
    await node.say(revocation_ack=pb.RevocationAck(revocation_id=message.revocation.revocation_id))
    receipt = await waiting

    assert chunks < 60, "the revocation waited for the transfer"
    assert receipt.missing == ()


async def test_a_revocation_reaches_a_node_that_refuses_the_configuration(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect(capabilities=MODERN)
    await node.hello()
    await node.follow()
    await rows.write(user("user-2"))
    await node.refuse(await node.transfer(), pb.NACK_REASON_INVALID)

    revision = await rows.change(tables.ApiKey, "key-1", revoked=True)
    waiting = revoke(control_plane, revision)
    await obey(node, is_kept=True)
    receipt = await waiting

    assert [(each.node, each.is_kept) for each in receipt.applied] == [("node-1", True)]


async def test_who_missed_revocations_is_told_by_a_control_plane_that_started_since(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    await rows.write(key("key-2"), key("key-3"))
    async with running(store) as first, connected(first.address, capabilities=MODERN) as node:
        await node.hello()
        await node.follow()
    async with store.transaction("test", "Revoke") as tx:
        row = await tx.session.get_one(tables.ApiKey, "key-2")
        row.revoked = True
        await keep_revocation(tx, row, terminate_streams=True)
    await rows.change(tables.ApiKey, "key-3", revoked=True)

    async with running(store) as second, connected(second.address, capabilities=MODERN) as back:
        back.resume(node)
        await back.hello()
        await back.read_until(lambda each: each.HasField("transfer_begin"))
    told = [(each.subject.id, each.terminate_streams) for each in back.revocations]
    async with running(store) as third, connected(third.address, capabilities=MODERN) as new:
        await new.hello()
        await new.follow()

    assert told == [("key-2", True), ("key-3", False)]
    assert {each.organization_id for each in back.revocations} == {"org-1"}
    assert new.revocations == [], "who has nothing has nothing to revoke"


async def test_what_was_revoked_long_ago_is_not_told_again() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    orders = RecentOrders(clock=lambda: now)
    for revision, age in ((5, timedelta(days=8)), (6, timedelta(days=6)), (7, timedelta())):
        subject = ResourceKey(KEY, f"key-{revision}")
        assert orders.add(RevocationOrder(subject, revision, "e", now - age))
    assert not orders.add(RevocationOrder(ResourceKey(KEY, "key-7"), 7, "e", now))

    def told(epoch: str, revision: int) -> list[int]:
        missed = orders.missed_by(Position(epoch, revision), EVERYTHING)
        return [each.revision for each in missed]

    assert told("e", 4) == [6, 7]
    assert told("e", 6) == [7]
    assert told("e", 7) == []
    assert told("", 0) == []
    # A key does not come back with a database that was restored.
    assert told("another", 99) == [6, 7]


async def test_a_change_is_waited_for_on_every_live_node(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    first, deaf = await connect(), await connect()
    for name, node in (("node-1", first), ("node-2", deaf)):
        await node.hello(name)
        await node.follow()

    revision = await rows.write(user("user-2"))
    waiting = asyncio.create_task(control_plane.fleet.propagated(revision, wait_ms=300))
    await first.follow_to(revision)
    propagation = await waiting

    assert propagation.revision == revision
    assert [each.node for each in propagation.applied] == ["node-1"]
    assert propagation.missing == ("node-2",)


class OtherControlPlanes:
    """What a fleet asks of the others: one node of theirs, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []

    def live_nodes(self) -> Mapping[str, str]:
        return {"node-9": "cp-2"}

    def states(self) -> Mapping[str, bytes]:
        return {}

    def ask(self, ask: Ask) -> None:
        self.asked.append(ask)

    def answer(self, news: News) -> None:
        raise AssertionError("a fleet calls `on_news`")


async def test_a_receipt_covers_the_nodes_of_other_control_planes(
    control_plane: ControlPlane, connect: Connect
) -> None:
    others = OtherControlPlanes()
    fleet = control_plane.fleet
    fleet.peers = others
    node = await connect()
    await node.hello()
    await node.follow()

    waiting = revoke(control_plane, revision=1_000)
    heard = await obey(node)
    (asked,) = others.asked
    assert asked.revocation == heard
    fleet.hear_peer_nodes(["node-10", "node-1"])
    fleet.hear_peer_revocation_ack("node-9", heard.revocation_id, True)
    assert not waiting.done()
    fleet.hear_peer_applied("node-10", Position(fleet.config_epoch, 1_000))
    receipt = await asyncio.wait_for(waiting, 2)

    assert [each.node for each in receipt.applied] == ["node-1", "node-10", "node-9"]
    assert [each.is_kept for each in receipt.applied] == [False, False, True]


async def test_what_another_control_plane_passes_on_is_told_once_and_its_answers_are_news(
    control_plane: ControlPlane, connect: Connect
) -> None:
    news: list[News] = []
    fleet = control_plane.fleet
    fleet.on_news = news.append
    node = await connect()
    await node.hello()
    await node.follow()
    order = RevocationOrder(ResourceKey(KEY, "key-1"), 9, fleet.config_epoch, datetime.now(UTC))

    fleet.hear_peer_revocation(order.to_proto())
    fleet.hear_peer_revocation(order.to_proto())
    heard = await obey(node, is_kept=True)
    await eventually(lambda: any(each.revocation_id for each in news))
    applied = fleet.own_nodes()
    node.call.cancel()
    await eventually(lambda: not news[-1].is_connected)

    assert heard.revocation_id == order.revocation_id
    assert len(node.revocations) == 1
    (acknowledged,) = [each for each in news if each.revocation_id]
    assert (acknowledged.node_id, acknowledged.is_kept) == ("node-1", True)
    assert applied == {"node-1": fleet.current}


async def test_a_revoked_key_is_told_also_when_another_control_plane_wrote_it(
    connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    revision = await rows.change(tables.ApiKey, "key-1", revoked=True)
    heard = await obey(node)

    assert heard.subject.id == "key-1"
    assert heard.revision == revision


async def test_a_deleted_organization_speaks_for_what_was_deleted_with_it(
    connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()

    revision = await rows.delete(
        (tables.ApiKey, "key-1"), (tables.User, "user-1"), (tables.Organization, "org-1")
    )
    received = await node.follow_to(revision)

    assert [each.subject.id for each in node.revocations] == ["org-1"]
    assert len(received.resources) == 4


async def test_a_node_that_comes_back_is_told_what_it_missed_before_the_transfer(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    node.call.cancel()
    await eventually(lambda: control_plane.fleet.watchers() == [])
    revision = await rows.change(tables.ApiKey, "key-1", revoked=True)
    await eventually(lambda: control_plane.fleet.current.revision == revision)

    back = await connect()
    back.applied = node.applied
    await back.hello()
    await back.read_until(lambda each: each.HasField("transfer_begin"))

    assert [each.subject.id for each in back.revocations] == ["key-1"]


async def test_a_change_of_one_control_plane_reaches_the_nodes_of_another(
    database_url: str,
) -> None:
    writer, other = Store(database_url), Store(database_url)
    rows = Rows(writer)
    await rows.basics()
    try:
        async with running(other) as started, connected(started.address) as node:
            await node.hello()
            await node.follow()

            revision = await rows.write(user("user-2"))
            received = await node.follow_to(revision, deadline_s=1.5)

            assert received.begin.to.revision == revision
    finally:
        await writer.close()
        await other.close()


async def test_two_control_planes_on_one_database_publish_the_same_digest(
    database_url: str,
) -> None:
    writer, other = Store(database_url), Store(database_url)
    rows = Rows(writer)
    await rows.basics()
    try:
        async with running(writer) as early:
            await rows.delete((tables.Rule, "rule-1"))
            await rows.change(tables.Rule, "rule-2", weight=7)
            revision = await rows.change(tables.Router, "router-1", gateway_metadata=True)
            await eventually(lambda: early.fleet.current.revision == revision)
            async with running(other) as late:
                assert late.fleet.current == early.fleet.current
    finally:
        await writer.close()
        await other.close()
