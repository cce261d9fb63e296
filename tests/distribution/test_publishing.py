"""What is published, when, and what is not."""

import asyncio
import itertools
from typing import Any

import pytest
from structlog.testing import capture_logs
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.snapshots import publisher as publishing
from controlplane.snapshots.consistency import ReferenceGraph
from controlplane.snapshots.encoding import decoded
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.working import WorkingState
from controlplane.store import tables
from controlplane.store.changes import changes_since
from controlplane.store.database import Store
from tests.distribution.conftest import (
    NOW,
    Connect,
    ControlPlane,
    Rows,
    credential,
    key,
    organization,
    running,
    user,
)
from tests.distribution.node import connected, digest_of, eventually

USER = resources_pb2.RESOURCE_KIND_USER
KEY = resources_pb2.RESOURCE_KIND_API_KEY


def limits_of(user_id: str) -> tables.SubjectLimits:
    return tables.SubjectLimits(
        id=f"user:{user_id}",
        name=f"user:acme/{user_id}",
        subject_kind=3,
        subject_id=user_id,
        limits=[{"unit": 1, "window": 2, "capacity": 5}],
        created_at=NOW,
        updated_at=NOW,
    )


async def test_a_state_with_a_dangling_reference_is_not_published_and_said_once(
    control_plane: ControlPlane, rows: Rows
) -> None:
    standing = control_plane.fleet.current

    with capture_logs() as logs:
        await rows.write(limits_of("nobody"))
        await rows.write(user("user-2"))
        await eventually(lambda: any(each["log_level"] == "error" for each in logs))
        await rows.write(user("user-3"))
        repaired = await rows.delete((tables.SubjectLimits, "user:nobody"))
        assert control_plane.fleet.current == standing
        await eventually(lambda: control_plane.fleet.current.revision == repaired)

    errors = [each for each in logs if each["log_level"] == "error"]
    assert [each["problems"] for each in errors] == [
        ["subject_limits user:nobody refers to user nobody, which does not exist"]
    ]


async def test_a_resource_that_no_transfer_takes_is_not_published(
    control_plane: ControlPlane, rows: Rows
) -> None:
    standing = control_plane.fleet.current

    with capture_logs() as logs:
        await rows.write(key("giant", padding=1_100_000))
        await eventually(lambda: any(each["log_level"] == "error" for each in logs))

    assert control_plane.fleet.current == standing
    assert logs[0]["problems"] == ["api_key giant is larger than a transfer takes"]


async def test_changes_wait_for_company_and_urgent_ones_do_not(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "QUIET_S", 0.2)
    monkeypatch.setattr(publishing, "LONGEST_WAIT_S", 0.4)
    await rows.basics()
    async with running(store) as started, connected(started.address) as node:
        await node.hello()
        await node.follow()

        for number in range(2, 5):
            together = await rows.write(user(f"user-{number}"))
        received = await node.follow()
        begun = asyncio.get_running_loop().time()
        urgent = await rows.change(tables.User, "user-2", suspended=True)
        next_received = await node.follow()
        took_s = asyncio.get_running_loop().time() - begun

    assert received.begin.to.revision == together
    assert next_received.begin.to.revision == urgent
    assert took_s < 0.2


async def test_a_rotated_secret_arrives_with_its_version(
    control_plane: ControlPlane, connect: Connect, rows: Rows
) -> None:
    node = await connect()
    await node.hello()
    await node.follow()
    rotated = credential(secret=b"sk-another-secret")

    revision = await rows.change(
        tables.Credential,
        "credential-1",
        version=1,
        sealed_secret=rotated.sealed_secret,
        fingerprint=rotated.fingerprint,
    )
    received = await node.follow_to(revision)

    bundle = received.secrets["credential-1"]
    assert (bundle.version, bundle.secret) == (1, b"sk-another-secret")


async def test_a_secret_of_another_master_key_stays_behind_alone(store: Store, rows: Rows) -> None:
    await rows.basics()
    fleet = Fleet(secret_opener(Sealer([MasterKey(b"x" * 32)])))
    publisher = Publisher(store, fleet)
    await publisher.load()
    watcher = fleet.attach(pb.Hello(node_id="n", boot_id="b", protocol_version=1))

    with capture_logs() as logs:
        messages = [watcher.next_message(fleet.now_s()) for _ in range(3)]

    assert isinstance(messages[1], bytes)
    chunk = pb.StreamConfigResponse.FromString(messages[1])
    assert len(chunk.transfer_chunk.resources) == 7
    assert len(chunk.transfer_chunk.secrets) == 0
    assert [each["event"] for each in logs] == ["credential not distributed"]


async def test_chunks_stay_below_their_bound(connect: Connect, rows: Rows) -> None:
    revision = await rows.write(
        *(key(f"key-{number:04}", padding=3_000) for number in range(2, 400)),
        key("large", padding=900_000),
    )
    node = await connect()
    await node.hello()

    received = await node.follow_to(revision)

    assert len(received.resources) == 7 + 399
    assert len(received.chunks) > 5
    assert all(chunk.ByteSize() < 1024 * 1024 for chunk in received.chunks)


@pytest.mark.parametrize(("count", "force"), [(50, False), (51, True)])
async def test_what_administrators_deleted_in_masses_is_forced(
    connect: Connect, rows: Rows, count: int, force: bool
) -> None:
    created = await rows.write(*(user(f"many-{number}") for number in range(count)))
    node = await connect()
    await node.hello()
    await node.follow_to(created)

    deleted = await rows.delete(*((tables.User, f"many-{number}") for number in range(count)))
    received = await node.follow_to(deleted)

    assert received.begin.force is force


async def test_what_is_kept_change_by_change_is_what_is_read_at_once(store: Store) -> None:
    rows = Rows(store)
    kept = WorkingState()

    async def follow() -> None:
        async with store.reading() as session:
            changes = await changes_since(session, kept.revision)
        await kept.apply(changes)
        fresh = WorkingState()
        async with store.reading() as session:
            await fresh.apply(await changes_since(session, 0))
        assert fresh.position == kept.position
        held = [decoded(item.entry) for item in kept.snapshot().items() if item]
        assert digest_of(held) == kept.position.digest
        assert kept.problems() == []

    await rows.basics()
    await follow()
    await rows.write(organization("org-2", "globex"), limits_of("user-1"))
    await follow()
    await rows.change(tables.Rule, "rule-1", priority=9)
    await rows.delete((tables.ApiKey, "key-1"))
    await follow()
    await rows.delete((tables.SubjectLimits, "user:user-1"))
    await rows.write(limits_of("user-1"))
    await follow()


def test_a_graph_finds_what_dangles_in_any_order_of_changes() -> None:
    owner, one, two = (ResourceKey(USER, "u"), ResourceKey(KEY, "1"), ResourceKey(KEY, "2"))
    steps: list[tuple[str, ResourceKey, tuple[ResourceKey, ...]]] = [
        ("put", owner, ()),
        ("put", one, (owner,)),
        ("put", two, (owner,)),
        ("remove", two, ()),
    ]

    for order in itertools.permutations(steps):
        graph = ReferenceGraph()
        existing: dict[ResourceKey, tuple[ResourceKey, ...]] = {}
        for verb, node, targets in order:
            if verb == "put":
                graph.put(node, targets)
                existing[node] = targets
            else:
                graph.remove(node)
                existing.pop(node, None)
            expected = {
                (source, target)
                for source, its_targets in existing.items()
                for target in its_targets
                if target not in existing
            }
            assert {(each.source, each.target) for each in graph.dangling()} == expected


async def test_a_failed_load_is_said_once_and_the_next_one_catches_up(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.basics()
    failures = 0

    async def failing(*arguments: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise OSError("the database is away")
        return await changes_since(*arguments)

    with capture_logs() as logs:
        async with running(store, poll_s=0.02) as started:
            monkeypatch.setattr(publishing, "changes_since", failing)
            revision = await rows.write(user("user-2"))
            await eventually(lambda: started.fleet.current.revision == revision)

    events = [each["event"] for each in logs]
    assert events.count("configuration not read") == 1
    assert events.count("configuration read again") == 1
