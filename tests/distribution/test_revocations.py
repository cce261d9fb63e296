"""Revocations overtake everything, and their receipts tell the truth."""

import asyncio

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.revocations import Receipt
from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.conftest import Connect, ControlPlane, Rows, key, running, user
from tests.distribution.node import Node, connected, eventually

KEY = resources_pb2.RESOURCE_KIND_API_KEY


def revoke(
    control_plane: ControlPlane, revision: int, wait_ms: int = 2_000
) -> asyncio.Task[Receipt]:
    """Begin to revoke key-1."""
    return asyncio.create_task(
        control_plane.fleet.revoke(KEY, "key-1", revision, terminate_streams=True, wait_ms=wait_ms)
    )


async def obey(node: Node) -> pb.Revocation:
    """Read up to the next revocation and acknowledge it."""
    message = await node.read_until(lambda each: each.HasField("revocation"))
    await node.say(revocation_ack=pb.RevocationAck(revocation_id=message.revocation.revocation_id))
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
