"""Devices and the caller's own numbers over HTTP, through both ways in."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from dataplane.domain.principals import LimitEntry
from tests.control.enrollment_server import EnrollmentServer
from tests.pipeline.conftest import DataPlane

REGISTER = "/v1/devices/register"


@pytest_asyncio.fixture
async def control_plane() -> AsyncIterator[EnrollmentServer]:
    """Registers whatever is asked for."""
    server = EnrollmentServer()
    await server.start()
    yield server
    await server.die()


@pytest.fixture
def control_plane_address(control_plane: EnrollmentServer) -> str:
    return control_plane.address


@pytest.fixture
def trusts_loopback() -> bool:
    return True


async def register(data_plane: DataPlane, address: str = "203.0.113.1") -> httpx.Response:
    return await data_plane.client.post(
        REGISTER,
        json={"deviceName": "phone", "platform": "linux", "version": "1"},
        headers={"authorization": "", "x-forwarded-for": address},
    )


async def test_a_device_registers_without_credentials(
    data_plane: DataPlane, control_plane: EnrollmentServer
) -> None:
    answer = await register(data_plane)

    assert answer.status_code == 201
    body = answer.json()
    assert body["deviceId"]
    assert body["sessionToken"]
    assert body["status"] == "pending_approval"
    assert answer.headers["cache-control"] == "no-store"
    [request] = control_plane.requests
    assert (request.address, request.device_name) == ("203.0.113.1", "phone")


async def test_an_address_that_registers_too_often_is_told_when_to_come_back(
    data_plane: DataPlane, control_plane: EnrollmentServer
) -> None:
    answers = [await register(data_plane) for _ in range(33)]

    assert [each.status_code for each in answers] == [201] * 30 + [429] * 3
    for each in answers[30:]:
        assert 1 <= int(each.headers["retry-after"]) <= 125
        details = each.json()["error"]["details"]
        assert details["layer"] == "registrations_per_address"
    assert (await register(data_plane, "203.0.113.2")).status_code == 201
    assert len(control_plane.requests) == 31


async def test_without_a_control_plane_registration_alone_is_away(
    data_plane: DataPlane, control_plane: EnrollmentServer
) -> None:
    await control_plane.die()

    registration = await register(data_plane)
    summary = await data_plane.client.get("/v1/usage/summary")

    for answer in (registration, summary):
        assert answer.status_code == 503
        assert answer.headers["x-tollkeeper-error"] == "control_plane_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    assert (await data_plane.chat()).status_code == 200
    assert (await data_plane.client.get("/v1/llm/quota")).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_only_small_registrations_are_read(data_plane: DataPlane, is_chunked: bool) -> None:
    body = b'{"deviceName": "' + b"x" * 5_000 + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    answer = await data_plane.client.post(
        REGISTER,
        content=pieces() if is_chunked else body,
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 413
    assert answer.json()["error"]["details"] == {"limit_bytes": 4_096}


async def test_what_is_no_registration_is_refused(data_plane: DataPlane) -> None:
    assert (await data_plane.client.get(REGISTER)).status_code == 405
    no_name = await data_plane.client.post(REGISTER, json={"platform": "linux"})
    assert (no_name.status_code, no_name.json()["error"]["param"]) == (400, "deviceName")
    form = await data_plane.client.post(REGISTER, data={"deviceName": "x"})
    assert form.status_code == 415


async def test_a_caller_reads_its_own_numbers_and_nothing_is_counted(
    data_plane: DataPlane,
) -> None:
    data_plane.limited(user=(LimitEntry("requests", "day", 10),))
    await data_plane.chat()

    answers = [await data_plane.client.get("/v1/llm/quota") for _ in range(3)]

    for each in answers:
        [layer] = each.json()["limits"]
        assert (layer["layer"], layer["used"], layer["remaining"]) == (
            "user_requests_per_day",
            1,
            9,
        )
    me = await data_plane.client.get("/v1/devices/me")
    assert (me.status_code, me.headers["x-tollkeeper-error"]) == (401, "missing_credentials")
