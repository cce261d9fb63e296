"""A node that serves some organizations is sent nothing of others, and still proves that it has all that is its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.identity import Context, NodeIdentityClaim
from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.conftest import (
    NOW,
    ControlPlane,
    Rows,
    credential,
    key,
    organization,
    provider,
    running,
    user,
)
from tests.distribution.node import MODERN, Node, connected, eventually

DEVICE = resources_pb2.RESOURCE_KIND_DEVICE
USER = resources_pb2.RESOURCE_KIND_USER
ORGANIZATION = resources_pb2.RESOURCE_KIND_ORGANIZATION


def claimed(context: Context) -> NodeIdentityClaim:
    """Take the bearer token for a certificate: `node-id org-1,org-2`."""
    text = dict(context.invocation_metadata() or ()).get("authorization", "")
    name, _, organizations = str(text).removeprefix("Bearer ").partition(" ")
    return NodeIdentityClaim(name or None, frozenset(filter(None, organizations.split(","))))


class Scoped:
    """A control plane with two organizations, and nodes of them."""

    def __init__(self, started: ControlPlane, rows: Rows, stack: AsyncExitStack) -> None:
        self.started, self.rows, self._stack = started, rows, stack

    async def node(self, name: str, *organizations: str) -> Node:
        opened = connected(
            self.started.address, f"{name} {','.join(organizations)}", capabilities=MODERN
        )
        return await self._stack.enter_async_context(opened)


@pytest.fixture
async def scoped(store: Store, rows: Rows) -> AsyncIterator[Scoped]:
    await rows.basics()
    theirs = provider("provider-2")
    theirs.organization_id = "org-2"
    secret = credential("credential-2", b"sk-of-globex")
    secret.provider_id, secret.name = "provider-2", "provider-2/credential-2"
    await rows.write(
        organization("org-2", "globex"),
        user("user-2", "org-2"),
        key("key-2", "user-2"),
        theirs,
        secret,
        device("device-1", None),
    )
    async with running(store, identify=claimed) as started, AsyncExitStack() as stack:
        yield Scoped(started, rows, stack)


def device(row_id: str, user_id: str | None) -> tables.Device:
    return tables.Device(
        id=row_id,
        name=row_id,
        status=2,
        user_id=user_id,
        router_id="router-1",
        token_sha256=row_id.encode().ljust(32, b"."),
        created_at=NOW,
        updated_at=NOW,
    )


async def test_a_node_of_one_organization_is_sent_no_byte_of_another(scoped: Scoped) -> None:
    node = await scoped.node("a", "org-1")
    everybody = await scoped.node("b")

    welcome = await node.hello("a")
    received = await node.follow()
    await everybody.hello("b")
    everything = await everybody.follow()

    assert welcome.organization_ids == ["org-1"]
    assert welcome.current == received.begin.to
    sent = b"".join(chunk.SerializeToString() for chunk in received.chunks)
    for theirs in (b"org-2", b"globex", b"user-2", b"key-2", b"provider-2", b"credential-2"):
        assert theirs not in sent
    assert set(received.secrets) == {"credential-1"}
    assert (DEVICE, "device-1") in received.resources
    assert set(everything.secrets) == {"credential-1", "credential-2"}
    assert everything.begin.to.digest != received.begin.to.digest


async def test_changes_of_others_move_the_position_alone(scoped: Scoped) -> None:
    node = await scoped.node("a", "org-1")
    await node.hello("a")
    before = (await node.follow()).begin.to.digest

    theirs = await scoped.rows.delete((tables.ApiKey, "key-2"))
    moved = await node.follow_to(theirs)
    ours = await scoped.rows.write(user("user-3"))
    changed = await node.follow_to(ours)

    assert moved.begin.intent == pb.TRANSFER_INTENT_NONE
    assert moved.begin.to.digest == before
    assert node.revocations == []
    assert changed.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert changed.resources.keys() == {(USER, "user-3")}


async def test_a_device_that_gets_a_user_leaves_the_nodes_of_others(scoped: Scoped) -> None:
    ours, theirs = await scoped.node("a", "org-1"), await scoped.node("b", "org-2")
    for name, node in (("a", ours), ("b", theirs)):
        await node.hello(name)
        await node.follow()
        assert (DEVICE, "device-1") in node.held

    revision = await scoped.rows.change(tables.Device, "device-1", user_id="user-2")
    lost = await ours.follow_to(revision)
    kept = await theirs.follow_to(revision)

    assert lost.removed == {(DEVICE, "device-1")}
    assert lost.resources == {}
    assert kept.resources.keys() == {(DEVICE, "device-1")}
    assert kept.removed == set()


async def test_a_provider_that_changes_hands_takes_its_secret_along(scoped: Scoped) -> None:
    node = await scoped.node("a", "org-1")
    await node.hello("a")
    await node.follow()

    revision = await scoped.rows.change(tables.Provider, "provider-2", organization_id="org-1")
    received = await node.follow_to(revision)

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert node.open(received.secrets["credential-2"]) == b"sk-of-globex"


async def test_a_revocation_is_told_to_nodes_that_know_the_subject(scoped: Scoped) -> None:
    ours, theirs = await scoped.node("a", "org-1"), await scoped.node("b", "org-2")
    for name, node in (("a", ours), ("b", theirs)):
        await node.hello(name)
        await node.follow()

    revision = await scoped.rows.change(tables.ApiKey, "key-1", revoked=True)
    await ours.follow_to(revision)
    await theirs.follow_to(revision)

    assert [each.organization_id for each in ours.revocations] == ["org-1"]
    assert theirs.revocations == []


async def test_a_receipt_does_not_wait_for_nodes_of_other_organizations(scoped: Scoped) -> None:
    node = await scoped.node("b", "org-2")
    await node.hello("b")
    await node.follow()

    receipt = await scoped.started.fleet.revoke(
        resources_pb2.RESOURCE_KIND_API_KEY,
        "key-1",
        1_000,
        organization_id="org-1",
        terminate_streams=False,
        wait_ms=60_000,
    )

    assert (receipt.applied, receipt.missing) == ((), ())


async def test_a_node_whose_scope_became_smaller_is_sent_all_that_is_left(
    scoped: Scoped,
) -> None:
    before = await scoped.node("a")
    await before.hello("a")
    await before.follow()
    after = await scoped.node("a", "org-1")
    after.resume(before)

    await after.hello("a", boot_id="boot-2")
    received = await after.follow()

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_UNSUITED
    assert (ORGANIZATION, "org-2") not in after.held


async def test_a_certificate_is_of_one_node(scoped: Scoped) -> None:
    node = await scoped.node("a", "org-1")

    await node.say(hello=pb.Hello(node_id="b", boot_id="boot-1", protocol_version=1))

    assert await node.ended() == grpc.StatusCode.PERMISSION_DENIED
    assert scoped.started.fleet.watchers() == []


async def test_a_banned_node_is_cut_off_at_once_and_stays_out(scoped: Scoped) -> None:
    node, other = await scoped.node("a", "org-1"), await scoped.node("b", "org-1")
    for name, each in (("a", node), ("b", other)):
        await each.hello(name)
        await each.follow()

    row = tables.NodeIdentity(id="a", created_at=NOW, updated_at=NOW, banned_at=NOW)
    await scoped.rows.write(row)

    assert await node.ended() == grpc.StatusCode.PERMISSION_DENIED
    again = await scoped.node("a", "org-1")
    await again.say(hello=pb.Hello(node_id="a", boot_id="boot-2", protocol_version=2))
    assert await again.ended() == grpc.StatusCode.PERMISSION_DENIED
    await eventually(lambda: [each.node_id for each in scoped.started.fleet.watchers()] == ["b"])

    unbanned = await scoped.rows.change(tables.NodeIdentity, "a", banned_at=None)
    await other.follow_to(unbanned)
    back = await scoped.node("a", "org-1")
    await back.hello("a")
    await back.follow()
