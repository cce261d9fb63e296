"""Devices and tiers on their way to the data planes."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tollkeeper.admin.v1 import device_service_pb2 as device_pb
from tollkeeper.common.v1 import devices_pb2, limits_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as enrollment_pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as enrollment_grpc

from controlplane.domain.devices import PENDING_LIFETIME, DeviceStatus
from controlplane.rpc.admin_services import add_admin_services, interceptors
from controlplane.rpc.enrollment import DeviceEnrollmentServicer
from controlplane.snapshots import publisher as publishing
from controlplane.snapshots.references import references_of
from controlplane.snapshots.working import WorkingState
from controlplane.store import tables
from controlplane.store.changes import changes_since
from controlplane.store.compaction import forget_pending_devices
from controlplane.store.database import Store
from controlplane.store.service import ensure_bootstrap_owner
from tests.distribution.conftest import NOW, SEALER, Connect, ControlPlane, Rows, router, running
from tests.distribution.node import Node, connected, eventually
from tests.distribution.process import environment_of, program
from tests.rpc.admin_api import NODE_TOKEN, OWNER_TOKEN, AdminApi, listening

DEVICE = resources_pb2.RESOURCE_KIND_DEVICE
TIER = resources_pb2.RESOURCE_KIND_TIER
LIMITS = resources_pb2.RESOURCE_KIND_SUBJECT_LIMITS

DAILY: dict[str, Any] = {"unit": 1, "window": 2, "capacity": 5}


def device(
    row_id: str = "device-1", status: DeviceStatus = DeviceStatus.PENDING_APPROVAL, **columns: Any
) -> tables.Device:
    return tables.Device(
        id=row_id,
        name="a phone",
        token_sha256=row_id.encode().ljust(32, b"."),
        status=status,
        **{"created_at": NOW, "updated_at": NOW, **columns},
    )


def approved(row_id: str = "device-1", **columns: Any) -> tables.Device:
    return device(
        row_id,
        **{
            "status": DeviceStatus.APPROVED,
            "user_id": "user-1",
            "router_id": "router-1",
            **columns,
        },
    )


def tier(name: str = "gold") -> tables.Tier:
    return tables.Tier(
        id=name,
        name=name,
        device_limits=[{**DAILY, "capacity": 1}],
        ip_limits=[{**DAILY, "capacity": 2}],
        user_limits=[{**DAILY, "capacity": 3}],
        credential_limits=[{**DAILY, "capacity": 4}],
        created_at=NOW,
        updated_at=NOW,
    )


def limits_of(kind: int, word: str, subject_id: str) -> tables.SubjectLimits:
    return tables.SubjectLimits(
        id=f"{word}:{subject_id}",
        name=f"{word}:{subject_id}",
        subject_kind=kind,
        subject_id=subject_id,
        limits=[DAILY],
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.fixture
async def node(control_plane: ControlPlane, connect: Connect) -> Node:
    """A data plane that has applied the basics."""
    assert control_plane.fleet.current.revision > 0
    opened = await connect()
    await opened.hello()
    await opened.follow()
    return opened


async def obey(node: Node) -> pb.Revocation:
    message = await node.read_until(lambda each: each.HasField("revocation"))
    await node.say(revocation_ack=pb.RevocationAck(revocation_id=message.revocation.revocation_id))
    return message.revocation


async def test_a_device_travels_with_all_that_a_data_plane_needs(node: Node, rows: Rows) -> None:
    until = datetime(2027, 1, 1, tzinfo=UTC)
    revision = await rows.write(
        device("waits"),
        approved(
            "calls",
            status=DeviceStatus.SUSPENDED,
            allowed_models=["gpt-*"],
            tier="gold",
            suspended_until=until,
            suspension_reason="lost",
        ),
    )

    received = await node.follow_to(revision)

    waiting = resources_pb2.Device.FromString(received.resources[DEVICE, "waits"].payload)
    calling = resources_pb2.Device.FromString(received.resources[DEVICE, "calls"].payload)
    assert waiting == resources_pb2.Device(
        name="a phone",
        token_sha256=b"waits".ljust(32, b"."),
        status=devices_pb2.DEVICE_STATUS_PENDING_APPROVAL,
    )
    assert calling.status == devices_pb2.DEVICE_STATUS_SUSPENDED
    assert (calling.user_id, calling.router_id, calling.tier) == ("user-1", "router-1", "gold")
    assert list(calling.allowed_models) == ["gpt-*"]
    assert calling.suspended_until.ToDatetime(UTC) == until
    assert calling.suspension_reason == "lost"


async def test_a_tier_travels_under_its_name_and_a_key_says_its_own(node: Node, rows: Rows) -> None:
    await rows.write(tier("gold"))
    revision = await rows.change(tables.ApiKey, "key-1", tier="gold")

    received = await node.follow_to(revision)

    found = resources_pb2.Tier.FromString(received.resources[TIER, "gold"].payload)
    assert found.name == "gold"
    layers = (found.device_limits, found.ip_limits, found.user_limits, found.credential_limits)
    assert [[limit.capacity for limit in each] for each in layers] == [[1], [2], [3], [4]]
    key = received.resources[resources_pb2.RESOURCE_KIND_API_KEY, "key-1"]
    assert resources_pb2.ApiKey.FromString(key.payload).tier == "gold"


async def test_limits_of_devices_and_addresses_travel(node: Node, rows: Rows) -> None:
    revision = await rows.write(
        device(),
        limits_of(limits_pb2.SUBJECT_KIND_DEVICE, "device", "device-1"),
        limits_of(limits_pb2.SUBJECT_KIND_IP, "ip", "2001:db8::/64"),
    )

    received = await node.follow_to(revision)

    for resource_id in ("device:device-1", "ip:2001:db8::/64"):
        resource = received.resources[LIMITS, resource_id]
        found = resources_pb2.SubjectLimits.FromString(resource.payload)
        assert found.subject_id == resource_id.partition(":")[2]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (DeviceStatus.PENDING_APPROVAL, ["router r", "user u"]),
        (DeviceStatus.APPROVED, ["router r", "user u"]),
        (DeviceStatus.SUSPENDED, ["router r", "user u"]),
        (DeviceStatus.REJECTED, ["user u"]),
        (DeviceStatus.REVOKED, ["user u"]),
    ],
)
def test_a_device_that_may_route_needs_its_router(
    status: DeviceStatus, expected: list[str]
) -> None:
    def references(**fields: Any) -> list[str]:
        payload = resources_pb2.Device(
            status=devices_pb2.DeviceStatus.ValueType(status), **fields
        ).SerializeToString()
        found = references_of(resources_pb2.Resource(kind=DEVICE, id="d", payload=payload))
        return sorted(map(str, found))

    assert references(user_id="u", router_id="r") == expected
    assert references() == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(limits_pb2.SUBJECT_KIND_DEVICE, ["device x"]), (limits_pb2.SUBJECT_KIND_IP, [])],
)
def test_limits_refer_to_their_device_and_not_to_an_address(
    kind: limits_pb2.SubjectKind.ValueType, expected: list[str]
) -> None:
    limits = resources_pb2.SubjectLimits(subject_kind=kind, subject_id="x")
    resource = resources_pb2.Resource(kind=LIMITS, id="l", payload=limits.SerializeToString())

    assert [str(each) for each in references_of(resource)] == expected


@pytest.mark.parametrize(
    ("table", "row_id", "change"),
    [
        (tables.Device, "calls", {"status": DeviceStatus.SUSPENDED}),
        (tables.Device, "calls", {"status": DeviceStatus.REVOKED}),
        (tables.Device, "waits", {"status": DeviceStatus.REJECTED}),
        (tables.Device, "calls", {"token_sha256": b"n" * 32}),
        (tables.Tier, "gold", {"ip_limits": []}),
    ],
    ids=["suspended", "revoked", "rejected", "rotated", "tier"],
)
async def test_what_refuses_a_device_waits_for_nothing(
    store: Store,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    table: type[tables.ConfigurationRow],
    row_id: str,
    change: dict[str, Any],
) -> None:
    # Who waits for company waits for longer than the test does.
    monkeypatch.setattr(publishing, "QUIET_S", 60)
    monkeypatch.setattr(publishing, "LONGEST_WAIT_S", 60)
    await rows.basics()
    await rows.write(approved("calls"), device("waits"), tier())
    async with running(store) as started, connected(started.address) as node:
        await node.hello()
        await node.follow()

        revision = await rows.change(table, row_id, **change)

        assert (await node.follow(deadline_s=2)).begin.to.revision == revision


async def effect_of(store: Store, *changes: Any) -> list[bool]:
    """Say for each change, made one after the other, whether it is urgent."""
    state, urgent = WorkingState(), []
    for change in changes:
        await change
        async with store.reading() as session:
            urgent.append(await state.apply(await changes_since(session, state.revision)))
    return urgent


async def test_what_admits_a_device_waits_for_company(store: Store, rows: Rows) -> None:
    urgent = await effect_of(
        store,
        rows.basics(),
        rows.write(device()),
        rows.change(tables.Device, "device-1", status=DeviceStatus.APPROVED, user_id="user-1"),
        rows.change(tables.Device, "device-1", status=DeviceStatus.SUSPENDED),
        rows.change(tables.Device, "device-1", status=DeviceStatus.APPROVED),
        rows.change(tables.Device, "device-1", allowed_models=["x"]),
    )

    assert urgent[1:] == [False, False, True, False, False]


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[AdminApi]:
    """The admin API of the control plane whose streams the nodes follow."""
    store = control_plane.store
    await ensure_bootstrap_owner(store, OWNER_TOKEN, secrets.randbelow)
    server = grpc.aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    add_admin_services(server, store, SEALER, control_plane.fleet, store.clock)
    async with listening(server) as address:
        client = AdminApi(address)
        yield client
        await client.channel.close()


async def test_a_revocation_of_a_device_names_who_obeys(
    node: Node, rows: Rows, api: AdminApi
) -> None:
    await node.follow_to(await rows.write(approved()))

    waiting = asyncio.ensure_future(
        api.devices.RevokeDevice(
            device_pb.RevokeDeviceRequest(id="device-1", wait_ms=5_000, terminate_streams=True)
        )
    )
    heard = await obey(node)
    receipt = await waiting

    assert heard.subject == resources_pb2.ResourceRef(kind=DEVICE, id="device-1")
    assert receipt.revision == heard.revision
    assert [each.node for each in receipt.applied] == ["node-1"]
    assert list(receipt.missing) == []


async def test_a_deleted_device_is_refused_at_once(node: Node, rows: Rows, api: AdminApi) -> None:
    await node.follow_to(await rows.write(approved()))

    result = await api.devices.DeleteDevice(device_pb.DeleteDeviceRequest(id="device-1"))

    assert (await obey(node)).subject.id == "device-1"
    assert (DEVICE, "device-1") not in (await node.follow_to(result.revision)).resources


async def test_a_device_that_another_control_plane_revoked_is_told_once(
    node: Node, rows: Rows
) -> None:
    await node.follow_to(await rows.write(approved()))

    revoked = await rows.change(tables.Device, "device-1", status=DeviceStatus.REVOKED)
    heard = await obey(node)
    await node.follow_to(await rows.change(tables.Device, "device-1", name="x"))
    await node.follow_to(await rows.delete((tables.Device, "device-1")))

    assert (heard.subject.id, heard.revision) == ("device-1", revoked)
    assert len(node.revocations) == 1


async def test_a_device_that_is_deleted_with_its_router_is_told_as_its_user_is_still_there(
    node: Node, rows: Rows
) -> None:
    await node.follow_to(await rows.write(router("router-2"), approved(router_id="router-2")))

    await node.follow_to(
        await rows.delete((tables.Device, "device-1"), (tables.Router, "router-2"))
    )

    assert [each.subject.id for each in node.revocations] == ["device-1"]


async def test_nine_hundred_forgotten_devices_pass_the_guard_and_nobody_is_told_of_each(
    node: Node, rows: Rows, store: Store
) -> None:
    created = await rows.write(*(device(f"many-{number}") for number in range(900)))
    before = await node.follow_to(created)
    assert sum(kind == DEVICE for kind, _ in before.resources) == 900
    store.clock = lambda: NOW + PENDING_LIFETIME

    assert await forget_pending_devices(store) == 900
    async with store.reading() as session:
        last = (await changes_since(session, 0)).revision
    left = 900
    while node.applied.revision < last:
        received = await node.follow()
        remaining = sum(kind == DEVICE for kind, _ in received.resources)
        # What a data plane would take for a fault: more than half of more than a hundred at once.
        assert received.begin.force or left - remaining <= 50
        left = remaining

    assert left == 0
    assert node.revocations == []


def registration(store: Store, control_plane: ControlPlane) -> asyncio.Task[Any]:
    servicer: Any = DeviceEnrollmentServicer(
        store, control_plane.fleet
    )  # Any: called without a context
    request = enrollment_pb.RegisterDeviceRequest(node_id="node-1", device_name="x")
    return asyncio.create_task(servicer.RegisterDevice(request, None))


async def test_a_registration_answers_when_the_data_planes_know_the_device(
    node: Node, connect: Connect, control_plane: ControlPlane, store: Store
) -> None:
    second = await connect()
    await second.hello("node-2")
    await second.follow()

    waiting = registration(store, control_plane)
    received = await node.follow()
    slower = await second.transfer()
    await eventually(
        lambda: control_plane.fleet.watchers()[0].applied.revision == received.begin.to.revision
    )
    assert not waiting.done()
    await second.apply(slower)
    answer = await asyncio.wait_for(waiting, 0.5)

    assert (DEVICE, answer.device_id) in received.resources
    assert answer.revision == received.begin.to.revision


async def test_a_registration_does_not_wait_for_a_data_plane_that_leaves(
    node: Node, control_plane: ControlPlane, store: Store
) -> None:
    waiting = registration(store, control_plane)
    await node.transfer()
    node.call.cancel()

    answer = await asyncio.wait_for(waiting, 0.8)

    assert answer.device_id


@pytest.mark.usefixtures("node")
async def test_a_registration_waits_for_a_second_at_most(
    control_plane: ControlPlane, store: Store
) -> None:
    begun = asyncio.get_running_loop().time()

    answer = await asyncio.wait_for(registration(store, control_plane), 4)

    assert answer.session_token
    assert asyncio.get_running_loop().time() - begun >= 1


async def test_without_data_planes_everything_is_applied_everywhere(
    control_plane: ControlPlane,
) -> None:
    assert await control_plane.fleet.applied_everywhere(10**9, within_ms=0)


async def test_a_control_plane_registers_devices_and_forgets_those_that_nobody_wanted(
    store: Store, tmp_path: Path
) -> None:
    async with store.transaction("test", "Write") as tx:
        long_ago = tx.now - PENDING_LIFETIME - timedelta(minutes=1)
        tx.add(device("unwanted", created_at=long_ago))

    async with program(environment_of(tmp_path)) as running_program:
        node_api = AdminApi(running_program.address, running_program.join_token)
        owner = AdminApi(running_program.address, running_program.owner_token)
        enrollment = enrollment_grpc.DeviceEnrollmentServiceStub(node_api.channel)
        registered = await enrollment.RegisterDevice(
            enrollment_pb.RegisterDeviceRequest(node_id="node-1", device_name="a phone")
        )
        async with asyncio.timeout(5):
            while len(left := await devices_of(owner)) > 1:
                pass

        assert left == [registered.device_id]
        for client in (node_api, owner):
            await client.channel.close()


async def devices_of(api: AdminApi) -> list[str]:
    answer = await api.devices.ListDevices(device_pb.ListDevicesRequest())
    return [each.id for each in answer.devices]
