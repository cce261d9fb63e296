from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from tollkeeper.admin.v1 import operations_service_pb2 as pb
from tollkeeper.admin.v1 import operations_service_pb2_grpc as pb_grpc
from tollkeeper.admin.v1 import tier_service_pb2 as tier_pb
from tollkeeper.config.v1 import config_service_pb2

from controlplane.domain.keys import sha256_of
from controlplane.rpc.admin_services import interceptors
from controlplane.rpc.changing import Backend
from controlplane.rpc.node_views import node_to_proto
from controlplane.rpc.operations import ControlPlane, CounterDesk, OperationsServicer
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.store import schema
from controlplane.store.database import Store
from controlplane.store.tables import Device, Organization, SubjectLimits
from tests.distribution.process import environment_of, program
from tests.rpc.admin_api import MASTER_KEY, NODE_TOKEN, OWNER_TOKEN, AdminApi, listening, refused

ASK = pb.GetServiceStatusRequest()


class Clock:
    """A clock in seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def fleet() -> Fleet:
    return Fleet(secret_opener(Sealer([MasterKey(MASTER_KEY)])))


def backend_of(store: Store) -> Backend:
    return Backend(store, Sealer([MasterKey(MASTER_KEY)]), fleet(), store.clock)


def servicer(
    store: Store, publisher: Publisher, clock: Clock, desk: CounterDesk | None = None
) -> OperationsServicer:
    own = ControlPlane("cp-1", "1.2.3", clock.now_s, clock)
    return OperationsServicer(backend_of(store), publisher, own, desk or fleet())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def publisher(store: Store) -> Publisher:
    return Publisher(store, fleet())


@pytest.fixture
async def operations(
    store: Store,
    api: AdminApi,
    publisher: Publisher,
    clock: Clock,
) -> AsyncIterator[str]:
    """The address of a server with the operations service of a control plane; `api` makes the owner who asks."""
    server = aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    pb_grpc.add_OperationsServiceServicer_to_server(servicer(store, publisher, clock), server)
    async with listening(server) as address:
        yield address


async def status(address: str, token: str = OWNER_TOKEN) -> pb.ServiceStatus:
    caller = AdminApi(address, token)
    try:
        found = await pb_grpc.OperationsServiceStub(caller.channel).GetServiceStatus(ASK)
    finally:
        await caller.channel.close()
    assert isinstance(found, pb.ServiceStatus)
    return found


async def test_an_operator_sees_how_the_control_plane_is(
    operations: str, api: AdminApi, store: Store, publisher: Publisher, clock: Clock
) -> None:
    organization = await api.create_organization("acme")
    await publisher.load()
    clock.now_s += 90.5

    found = await status(operations)

    assert (found.control_plane_id, found.version) == ("cp-1", "1.2.3")
    assert found.uptime_seconds == 90
    assert found.database == store.engine.dialect.name
    assert found.schema == schema.head()
    assert found.position.revision == organization.revision
    assert list(found.problems) == []
    assert found.pending_devices == 0


async def test_only_who_may_read_operations_sees_them(operations: str) -> None:
    assert (await refused(status(operations, NODE_TOKEN))).reason == "PERMISSION_DENIED"
    assert (await refused(status(operations, ""))).reason == "MISSING_CREDENTIALS"


async def test_devices_that_wait_for_approval_are_counted(operations: str, store: Store) -> None:
    async with store.transaction("ann", "x") as tx:
        for number, device_status in enumerate((1, 1, 2, 3, 4, 5)):
            tx.add(
                Device(
                    id=f"d{number}",
                    name="laptop",
                    token_sha256=sha256_of(str(number)),
                    status=device_status,
                    created_at=tx.now,
                    updated_at=tx.now,
                )
            )

    assert (await status(operations)).pending_devices == 2


async def test_an_operator_sees_why_the_newest_content_is_not_published(
    operations: str, api: AdminApi, store: Store, publisher: Publisher
) -> None:
    await api.create_organization("acme")
    await publisher.load()
    standing = publisher.position
    async with store.transaction("ann", "x") as tx:
        stamps: dict[str, Any] = {"created_at": tx.now, "updated_at": tx.now}
        tx.add(
            SubjectLimits(id="user:u", name="user:a/u", subject_kind=3, subject_id="u", **stamps)
        )
        tx.add(Organization(id="b", name="b", **stamps))
    await publisher.load()

    found = await status(operations)

    assert found.position.revision == standing.revision
    assert len(found.problems) == 1
    assert "user:u" in found.problems[0]


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg"])
async def test_a_control_plane_without_its_database_says_so(
    tmp_path: Path, clock: Clock, driver: str
) -> None:
    nowhere = tmp_path / "nowhere"
    url = f"{driver}:///{nowhere}/x.sqlite"
    if driver.startswith("postgresql"):
        url = f"{driver}://postgres@/postgres?host={nowhere}"
    store = Store(url)
    server = aio.server()
    own = servicer(store, Publisher(store, fleet()), clock)
    pb_grpc.add_OperationsServiceServicer_to_server(own, server)

    async with listening(server) as address:
        found = await status(address)

    assert list(found.problems) == ["the database does not answer"]
    assert (found.control_plane_id, found.schema) == ("cp-1", "")
    await store.close()


async def test_the_time_of_the_database_is_measured(
    store: Store, publisher: Publisher, clock: Clock
) -> None:
    """By the clock that it is given: here each look at it takes a quarter of a second."""

    def hurry() -> float:
        clock.now_s += 0.25
        return clock.now_s

    own = ControlPlane("cp-1", "1.2.3", clock.now_s, hurry)
    server = aio.server()
    pb_grpc.add_OperationsServiceServicer_to_server(
        OperationsServicer(backend_of(store), publisher, own, fleet()), server
    )

    async with listening(server) as address:
        found = await status(address)

    assert found.database_ms == 250


async def test_a_node_that_cannot_read_its_counters_is_shown_so(store: Store) -> None:
    own = fleet()
    watcher = own.attach(config_service_pb2.Hello(node_id="node-1"))

    def shown() -> bool:
        return node_to_proto(watcher, store.clock(), own.now_s(), "cp-1").limits_unavailable

    assert not shown()
    watcher.hear_heartbeat(config_service_pb2.Heartbeat(limits_unavailable=True))
    assert shown()
    watcher.hear_heartbeat(config_service_pb2.Heartbeat())
    assert not shown()


async def test_a_started_control_plane_has_its_tiers_and_shows_its_status(tmp_path: Path) -> None:
    async with program(environment_of(tmp_path)) as running:
        caller = AdminApi(running.address, running.owner_token)
        listed = await caller.tiers.ListTiers(tier_pb.ListTiersRequest())
        await caller.channel.close()
        found = await status(running.address, running.owner_token)

    assert [tier.name for tier in listed.tiers] == ["free", "paid"]
    assert found.control_plane_id
    assert found.position.revision >= max(tier.revision for tier in listed.tiers)
    assert found.database_ms > 0
