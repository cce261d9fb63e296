"""What a fault of one control plane must not do to the nodes."""

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest
from sqlalchemy import update
from sqlmodel.ext.asyncio.session import AsyncSession
from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.domain.epochs import new_epoch
from controlplane.snapshots import publisher as publishing
from controlplane.snapshots import watcher as watching
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.gate import FullGate
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.snapshots.snapshot import Snapshot
from controlplane.snapshots.watcher import Watcher
from controlplane.snapshots.working import WorkingState
from controlplane.store import tables
from controlplane.store.changes import Changes, everything
from controlplane.store.database import Store
from controlplane.store.fleet_tables import RevocationRow
from tests.distribution.conftest import NOW, SEALER, Rows, running, user
from tests.distribution.node import connected, eventually


def later_epoch(after: str) -> str:
    return new_epoch(datetime.now(UTC), b"random", after=after)


async def begin_epoch(store: Store, epoch: str) -> None:
    async with store.ledger() as session:
        await session.exec(update(tables.RevisionCounter).values(config_epoch=epoch))


async def plant(store: Store, row: tables.Tombstone | RevocationRow) -> None:
    async with store.ledger() as session:
        session.add(row)


def said(watcher: Watcher, fleet: Fleet, at_most: int = 50) -> list[pb.StreamConfigResponse]:
    """Return what the watcher wants to say until it has nothing more."""
    messages: list[pb.StreamConfigResponse] = []
    for _ in range(at_most):
        message = watcher.next_message(fleet.now_s())
        if message is None:
            break
        whole = (
            pb.StreamConfigResponse.FromString(message) if isinstance(message, bytes) else message
        )
        messages.append(whole)
    return messages


def begun(messages: list[pb.StreamConfigResponse]) -> list[pb.TransferBegin]:
    return [each.transfer_begin for each in messages if each.HasField("transfer_begin")]


def recorded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    published: list[Snapshot] = []
    publish = fleet.publish

    def record(snapshot: Snapshot) -> None:
        published.append(snapshot)
        publish(snapshot)

    monkeypatch.setattr(fleet, "publish", record)
    return published


async def test_changes_that_fail_half_way_never_publish_an_empty_configuration(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.basics()
    applied, failed = asyncio.Event(), asyncio.Event()
    apply = WorkingState.apply
    calls = itertools.count(1)

    async def failing(state: WorkingState, changes: Changes) -> bool:
        if next(calls) == 2:
            # Longer than the first change waits for company.
            await asyncio.sleep(0.1)
            failed.set()
            raise ValueError("a row that cannot be encoded")
        is_urgent = await apply(state, changes)
        applied.set()
        return is_urgent

    async with running(store, poll_s=20.0) as started:
        published = recorded(started.fleet, monkeypatch)
        monkeypatch.setattr(WorkingState, "apply", failing)
        await rows.write(user("user-2"))
        await asyncio.wait_for(applied.wait(), 5)
        await rows.write(user("user-3"))
        await asyncio.wait_for(failed.wait(), 5)
        last = await rows.write(user("user-4"))
        await eventually(lambda: started.fleet.current.revision == last)

    assert [each.everything.count for each in published] == [10]


@pytest.mark.parametrize(("pause_s", "is_read"), [(0.4, True), (5.0, False)])
async def test_a_database_may_take_long_to_read_but_not_stand_still(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch, pause_s: float, is_read: bool
) -> None:
    revision = await rows.basics()

    async def slow(session: AsyncSession) -> AsyncIterator[Changes]:
        async for part in everything(session):
            await asyncio.sleep(pause_s)
            yield part

    monkeypatch.setattr(publishing, "everything", slow)
    # Users and keys have parts of their own: three take longer than this together.
    monkeypatch.setattr(publishing, "_READ_DEADLINE_S", 1.1)
    publisher = Publisher(store, Fleet(secret_opener(SEALER)))

    with contextlib.nullcontext() if is_read else pytest.raises(TimeoutError):
        await publisher.load()

    assert publisher.position.revision == (revision if is_read else 0)
    assert gc.isenabled()


async def test_a_publication_that_fails_is_made_up_for(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.basics()
    async with running(store, poll_s=0.05) as started:
        publish = started.fleet.publish
        calls = itertools.count(1)

        def failing(snapshot: Snapshot) -> None:
            if next(calls) == 1:
                raise RuntimeError("a fault of a stream")
            publish(snapshot)

        monkeypatch.setattr(started.fleet, "publish", failing)
        revision = await rows.write(user("user-2"))

        await eventually(lambda: started.fleet.current.revision == revision)


async def test_what_a_newer_control_plane_deletes_does_not_stop_an_older_one(
    store: Store, rows: Rows
) -> None:
    created = await rows.basics()
    async with running(store, poll_s=0.05) as started:
        unknown = tables.Tombstone(kind="guardrail", id="g-1", revision=created + 1, deleted_at=NOW)
        await plant(store, unknown)
        revision = await rows.write(user("user-2"))

        await eventually(lambda: started.fleet.current.revision == revision)


async def test_a_node_is_not_led_back_while_the_later_epoch_cannot_be_published(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    fleet = Fleet(secret_opener(SEALER))
    publisher = Publisher(store, fleet)
    await publisher.load()
    epoch = later_epoch(fleet.current.config_epoch)
    await begin_epoch(store, epoch)
    await rows.write(
        tables.SubjectLimits(
            id="user:nobody",
            name="user:acme/nobody",
            subject_kind=3,
            subject_id="nobody",
            created_at=NOW,
            updated_at=NOW,
        )
    )
    applied = position_pb2.Position(config_epoch=epoch, revision=9, digest=b"d" * 32)
    watcher = fleet.attach(pb.Hello(node_id="n", boot_id="b", protocol_version=2, applied=applied))

    await publisher.load()

    assert publisher.problems
    assert begun(said(watcher, fleet)) == []


async def test_a_revocation_of_a_new_epoch_overtakes_its_transfers(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    fleet = Fleet(secret_opener(SEALER))
    publisher = Publisher(store, fleet)
    await publisher.load()
    watcher = fleet.attach(pb.Hello(node_id="n", boot_id="b", protocol_version=2))
    said(watcher, fleet)
    await begin_epoch(store, later_epoch(fleet.current.config_epoch))
    await rows.change(tables.ApiKey, "key-1", revoked=True)

    await publisher.load()

    assert [each.revocation.subject.id for each in said(watcher, fleet)][:1] == ["key-1"]


class Waiting:
    """A stream at the gate."""

    def __init__(self) -> None:
        self.admissions = 0

    def admit(self) -> None:
        self.admissions += 1


def test_who_needs_its_place_no_more_passes_it_on() -> None:
    gate = FullGate(places=1)
    sending, content, waiting = Waiting(), Waiting(), Waiting()
    assert gate.enter(sending)
    assert not gate.enter(content)
    assert not gate.enter(waiting)

    gate.leave(sending)
    # It was let in, and has the newest content by now.
    gate.leave(content)

    assert waiting.admissions > 0
    assert gate.enter(waiting)


async def test_a_node_has_longer_to_apply_more(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rows.basics()
    now_s = 0.0
    fleet = Fleet(secret_opener(SEALER), interval_s=1e6, monotonic_s=lambda: now_s)
    publisher = Publisher(store, fleet)
    await publisher.load()
    monkeypatch.setattr(watching, "SLOWEST_APPLIED_PER_S", 0.1)
    watcher = fleet.attach(pb.Hello(node_id="n", boot_id="b", protocol_version=2))
    (first,) = begun(said(watcher, fleet))
    await rows.write(user("user-2"))
    await publisher.load()

    now_s = 30 + first.resource_count / 0.1 - 1
    assert begun(said(watcher, fleet)) == []
    now_s += 2
    assert len(begun(said(watcher, fleet))) == 1


@pytest.mark.parametrize("node_id", ["\0", "a\nb"])
async def test_a_node_has_an_id_that_every_database_can_hold(
    store: Store, rows: Rows, node_id: str
) -> None:
    await rows.basics()
    async with running(store) as started, connected(started.address) as node:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await node.hello(node_id=node_id)

    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
