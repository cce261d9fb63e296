"""Two control planes on one PostgreSQL, each with nodes of its own."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.epochs import is_epoch
from controlplane.store import tables
from controlplane.store.database import Store
from controlplane.store.tables import RevisionCounter
from controlplane.store.transactions import COUNTER_ID
from tests.distribution.conftest import Rows, organization
from tests.distribution.node import Node, connected, eventually
from tests.distribution.replicated import Replica, replica
from tests.distribution.test_listening import cut_all
from tests.fixtures_databases import PostgresServer

KEY = resources_pb2.RESOURCE_KIND_API_KEY
DELTA = (pb.CAPABILITY_DELTA,)

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@dataclass
class Pair:
    """Two control planes, the rows of their database, and one node on each."""

    one: Replica
    other: Replica
    rows: Rows
    node_of_one: Node
    node_of_other: Node


@pytest.fixture
async def pair(database_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two control planes with a node each, which has what there is."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(replica(database_url, tmp_path, "cp-1"))
        other = await stack.enter_async_context(replica(database_url, tmp_path, "cp-2"))
        rows = Rows(one.store)
        revision = await rows.basics()
        nodes = []
        for each, name in ((one, "node-1"), (other, "node-2")):
            node = await stack.enter_async_context(connected(each.address, capabilities=DELTA))
            await node.hello(name)
            await node.follow_to(revision)
            nodes.append(node)
        await eventually(lambda: set(one.replication.replicas.live_nodes()) == {"node-2"})
        await eventually(lambda: set(other.replication.replicas.live_nodes()) == {"node-1"})
        await eventually(lambda: one.replication.listening.is_connected)
        await eventually(lambda: other.replication.listening.is_connected)
        yield Pair(one, other, rows, *nodes)


async def obey(node: Node) -> pb.Revocation:
    """Read up to the next revocation and say that it is kept."""
    message = await node.read_until(lambda each: each.HasField("revocation"))
    revocation_id = message.revocation.revocation_id
    await node.say(revocation_ack=pb.RevocationAck(revocation_id=revocation_id, is_kept=True))
    return message.revocation


async def test_a_change_on_one_reaches_the_nodes_of_the_other_within_a_second(pair: Pair) -> None:
    begun = time.monotonic()
    revision = await pair.rows.write(organization("org-2", "globex"))

    received = await pair.node_of_other.follow_to(revision)

    assert time.monotonic() - begun < 1
    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert (resources_pb2.RESOURCE_KIND_ORGANIZATION, "org-2") in received.resources


async def test_a_receipt_covers_the_nodes_of_every_control_plane(pair: Pair) -> None:
    begun = time.monotonic()
    waiting = asyncio.create_task(
        pair.one.fleet.revoke(
            KEY, "key-1", 1_000, organization_id="org-1", terminate_streams=True, wait_ms=4_000
        )
    )
    mine, theirs = await asyncio.gather(obey(pair.node_of_one), obey(pair.node_of_other))
    receipt = await waiting

    assert mine == theirs
    assert theirs.terminate_streams
    assert [each.node for each in receipt.applied] == ["node-1", "node-2"]
    assert all(each.is_kept for each in receipt.applied)
    # The wait ended with the last answer, not with its time.
    assert receipt.applied[1].ms <= (time.monotonic() - begun) * 1000 < 2_000
    assert receipt.missing == ()


async def test_a_receipt_names_a_node_of_another_control_plane_that_does_not_answer(
    pair: Pair,
) -> None:
    waiting = asyncio.create_task(
        pair.one.fleet.revoke(
            KEY, "key-1", 1_000, organization_id="org-1", terminate_streams=False, wait_ms=500
        )
    )
    await obey(pair.node_of_one)
    receipt = await waiting

    assert [each.node for each in receipt.applied] == ["node-1"]
    assert receipt.missing == ("node-2",)


async def test_waiting_for_a_change_covers_the_nodes_of_every_control_plane(pair: Pair) -> None:
    revision = await pair.rows.write(organization("org-2", "globex"))
    waiting = asyncio.create_task(pair.one.fleet.propagated(revision, wait_ms=4_000))

    await asyncio.gather(
        pair.node_of_one.follow_to(revision), pair.node_of_other.follow_to(revision)
    )
    propagation = await waiting

    assert [each.node for each in propagation.applied] == ["node-1", "node-2"]
    assert propagation.missing == ()


async def test_without_announcements_changes_are_found_all_the_same(
    pair: Pair, postgres_server: PostgresServer, database_url: str
) -> None:
    for attempt in range(2):
        cut_all(postgres_server, database_url)
        await eventually(lambda: not pair.other.replication.listening.is_connected)
        revision = await pair.rows.write(organization(f"extra-{attempt}", f"globex-{attempt}"))
        await pair.node_of_other.follow_to(revision)
    await eventually(lambda: pair.other.replication.listening.is_connected)


async def set_back(store: Store, revision: int) -> None:
    """Make the database look like an older state of itself, without what came later."""
    async with store.ledger() as session:
        await session.delete(await session.get_one(tables.Organization, "org-2"))
        (await session.get_one(RevisionCounter, COUNTER_ID)).revision = revision


async def test_a_database_that_is_set_back_begins_an_epoch_and_every_node_gets_everything(
    pair: Pair,
) -> None:
    revision = await pair.rows.write(organization("org-2", "globex"))
    nodes = (pair.node_of_one, pair.node_of_other)
    before = [(await node.follow_to(revision)).begin.to for node in nodes]

    # Both have looked at the database since.
    await asyncio.gather(*(each.replication.epochs.start() for each in (pair.one, pair.other)))
    await set_back(pair.one.store, revision - 1)
    after = [await node.follow() for node in nodes]

    for received in after:
        assert received.begin.intent == pb.TRANSFER_INTENT_FULL
        assert received.begin.reason == pb.TRANSFER_REASON_EPOCH
        assert received.begin.to.revision == revision - 1
        assert (resources_pb2.RESOURCE_KIND_ORGANIZATION, "org-2") not in received.resources
    assert after[0].begin.to == after[1].begin.to
    assert is_epoch(after[0].begin.to.config_epoch)
    assert after[0].begin.to.config_epoch > before[0].config_epoch


async def test_a_node_with_a_revision_that_was_lost_is_believed_after_a_while(pair: Pair) -> None:
    epoch, revision = pair.one.fleet.current.config_epoch, pair.one.fleet.current.revision
    async with connected(pair.one.address, capabilities=DELTA) as node:
        node.applied.config_epoch, node.applied.revision = epoch, revision + 3
        await node.hello("node-3")
        # It is sent nothing older of its epoch.
        received = await node.follow()
    others = [await each.follow() for each in (pair.node_of_one, pair.node_of_other)]

    for each in (received, *others):
        assert each.begin.intent == pb.TRANSFER_INTENT_FULL
        assert each.begin.reason == pb.TRANSFER_REASON_EPOCH
        assert each.begin.to == received.begin.to
    assert received.begin.to.config_epoch > epoch
    assert received.begin.to.revision == revision
