import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from sqlalchemy import make_url
from sqlmodel import select
from tollkeeper.common.v1 import devices_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as pb_grpc

from controlplane.domain.devices import (
    MAX_PENDING,
    MAX_PENDING_OF_ADDRESS,
    DeviceStatus,
)
from controlplane.domain.keys import sha256_of
from controlplane.rpc.admin_services import interceptors
from controlplane.rpc.enrollment import DeviceEnrollmentServicer
from controlplane.snapshots.fleet import Fleet
from controlplane.store.database import Store
from controlplane.store.service import ensure_bootstrap_owner
from controlplane.store.tables import AuditEntry, Device
from tests.rpc.admin_api import NODE_TOKEN, OWNER_TOKEN, AdminApi, listening, refused


def enrollment_server(store: Store) -> aio.Server:
    """Return a control plane that registers devices and has no data planes."""
    server = aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    fleet = Fleet(lambda _sealed: None)
    pb_grpc.add_DeviceEnrollmentServiceServicer_to_server(
        DeviceEnrollmentServicer(store, fleet), server
    )
    return server


class Enrollment:
    """Registers devices at one control plane."""

    def __init__(self, address: str, token: str = NODE_TOKEN) -> None:
        self.channel = AdminApi(address, token).channel
        self._stub = pb_grpc.DeviceEnrollmentServiceStub(self.channel)

    async def register(
        self, address: str = "203.0.113.7", **fields: Any
    ) -> pb.RegisterDeviceResponse:
        given = {"node_id": "node-1", "device_name": "a phone", **fields}
        return await self._stub.RegisterDevice(
            pb.RegisterDeviceRequest(address=address, address_prefix=address, **given)
        )

    async def outcome(self, address: str) -> str:
        """Register and return how it went, in a word."""
        try:
            await self.register(address)
        except aio.AioRpcError as error:
            return error.code().name
        return "OK"


@pytest.fixture
async def enrollment(store: Store) -> AsyncIterator[Enrollment]:
    async with listening(enrollment_server(store)) as address:
        client = Enrollment(address)
        yield client
        await client.channel.close()


@pytest.fixture
async def control_planes(store: Store, database_url: str) -> AsyncIterator[list[Enrollment]]:
    """Eight servers on one database, four for each of two stores: none of them knows of the others."""
    async with AsyncExitStack() as stack:
        other = Store(database_url)
        stack.push_async_callback(other.close)
        clients = []
        for each in (store, other) * 4:
            address = await stack.enter_async_context(listening(enrollment_server(each)))
            clients.append(Enrollment(address))
            stack.push_async_callback(clients[-1].channel.close)
        yield clients


async def fill(store: Store, count: int) -> None:
    """Let so many devices wait, each with an address of its own."""
    async with store.transaction("test", "Fill") as tx:
        for number in range(count):
            tx.add(
                Device(
                    id=f"filler{number:06}",
                    name="x",
                    token_sha256=sha256_of(str(number)),
                    status=DeviceStatus.PENDING_APPROVAL,
                    address_prefix=f"filler-{number}",
                    created_at=tx.now,
                    updated_at=tx.now,
                )
            )


async def all_devices(store: Store) -> list[Device]:
    async with store.reading() as session:
        return list((await session.exec(select(Device))).all())


async def test_a_registered_device_waits_and_its_token_is_shown_once(
    enrollment: Enrollment, store: Store
) -> None:
    answer = await enrollment.register(
        device_name="Alice's phone",
        platform="ios",
        version="1.4.2",
        user_agent="app/1\x9b",
    )

    assert re.fullmatch(r"[a-z0-9]{12}", answer.device_id)
    assert re.fullmatch(r"tks_[0-9A-Za-z]{43}", answer.session_token)
    assert (answer.status, answer.revision) == (devices_pb2.DEVICE_STATUS_PENDING_APPROVAL, 1)
    [row] = await all_devices(store)
    assert row.id == answer.device_id
    assert row.token_sha256 == sha256_of(answer.session_token)
    assert (row.status, row.user_id, row.router_id) == (DeviceStatus.PENDING_APPROVAL, None, None)
    assert (row.name, row.platform, row.version) == ("Alice's phone", "ios", "1.4.2")
    assert (row.address, row.address_prefix) == ("203.0.113.7", "203.0.113.7")
    assert row.user_agent == "app/1"


async def test_every_registration_makes_another_device(enrollment: Enrollment) -> None:
    answers = [await enrollment.register() for _ in range(2)]

    assert len({answer.device_id for answer in answers}) == 2
    assert len({answer.session_token for answer in answers}) == 2


async def test_the_audit_says_which_data_plane_asked_and_nothing_of_the_token(
    enrollment: Enrollment, store: Store
) -> None:
    answer = await enrollment.register(node_id="node-7")

    async with store.reading() as session:
        [entry] = (await session.exec(select(AuditEntry))).all()
    assert (entry.actor, entry.rpc) == ("node:node-7", "RegisterDevice")
    assert entry.resource == answer.device_id
    assert entry.request["device_name"] == "a phone"
    shown = str(entry.model_dump())
    assert answer.session_token not in shown
    assert sha256_of(answer.session_token).hex() not in shown


async def test_a_token_is_nowhere_in_the_database(
    enrollment: Enrollment, store: Store, database_url: str
) -> None:
    answer = await enrollment.register()

    token = answer.session_token.encode()
    if store.engine.dialect.name == "sqlite":
        path = Path(make_url(database_url).database or "")
        for file in path.parent.glob(f"{path.name}*"):
            assert token not in file.read_bytes()
    else:
        for row in await all_devices(store):
            assert token not in str(row.model_dump()).encode()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_name": ""}, "device_name"),
        ({"device_name": "x" * 101}, "device_name"),
        ({"device_name": "a\x00b"}, "device_name"),
        ({"platform": "\x1b[2J"}, "platform"),
        ({"version": "1\n2"}, "version"),
        ({"node_id": ""}, "node_id"),
    ],
)
async def test_what_a_device_says_of_itself_is_checked(
    enrollment: Enrollment, store: Store, fields: dict[str, str], field: str
) -> None:
    refusal = await refused(enrollment.register(**fields))

    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert await all_devices(store) == []


async def test_administrators_do_not_register_devices(enrollment: Enrollment, store: Store) -> None:
    await ensure_bootstrap_owner(store, OWNER_TOKEN, secrets.randbelow)
    async with listening(enrollment_server(store)) as address:
        owner = Enrollment(address, OWNER_TOKEN)

        refusal = await refused(owner.register())

        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
        await owner.channel.close()


async def test_a_full_list_says_when_to_come_back(enrollment: Enrollment, store: Store) -> None:
    await fill(store, MAX_PENDING)

    refusal = await refused(enrollment.register())

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMIT_EXCEEDED",
    )
    assert refusal.message == "1000 devices wait for approval"
    assert refusal.retry_after_s == 600
    assert refusal.fields == []


async def test_a_decision_makes_room_for_one_more(enrollment: Enrollment, store: Store) -> None:
    await fill(store, MAX_PENDING)
    async with store.transaction("ann", "RejectDevice") as tx:
        row = await tx.devices.get_for_change("filler000000")
        row.status = DeviceStatus.REJECTED

    assert [await enrollment.outcome("a"), await enrollment.outcome("b")] == [
        "OK",
        "RESOURCE_EXHAUSTED",
    ]


async def test_the_places_of_all_are_taken_exactly_by_two_hundred_at_once(
    control_planes: list[Enrollment], store: Store
) -> None:
    await fill(store, MAX_PENDING - 20)

    outcomes = await asyncio.gather(
        *(control_planes[n % 8].outcome(f"198.51.100.{n}") for n in range(200))
    )

    assert Counter(outcomes) == {"OK": 20, "RESOURCE_EXHAUSTED": 180}
    assert len(await all_devices(store)) == MAX_PENDING


async def test_the_places_of_an_address_are_taken_exactly_by_two_hundred_at_once(
    control_planes: list[Enrollment], store: Store
) -> None:
    outcomes = await asyncio.gather(
        *(control_planes[n % 8].outcome("2001:db8::/64") for n in range(200))
    )

    assert Counter(outcomes) == {
        "OK": MAX_PENDING_OF_ADDRESS,
        "RESOURCE_EXHAUSTED": 200 - MAX_PENDING_OF_ADDRESS,
    }
    assert len(await all_devices(store)) == MAX_PENDING_OF_ADDRESS
