"""Registering a device and asking for its status: real guards, and a control plane with a script."""

import asyncio
import dataclasses
import hashlib
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # has none

from dataplane.control.enrollment import Enrollment
from dataplane.control.sightings import Sighting, Sightings
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import (
    Device,
    DeviceStatus,
    Organization,
    Principal,
    Service,
    User,
)
from dataplane.embedded_redis import RunningRedis
from dataplane.http.device_desk import DeviceDesk
from dataplane.http.devices import my_device, register_device
from dataplane.http.exchange import HttpAnswer, HttpRequest
from dataplane.limits.guards import Guards
from tests.control.enrollment_server import EnrollmentServer, fails
from tests.pipeline.conftest import KEY, DataPlane

JSON = {"content-type": "application/json"}
TOKEN = "tks_" + "T" * 43
DEVICE_ID = "d00000000001"
FAR_MS = 4_102_444_800_000  # 2100


@pytest.fixture
def way_in() -> str:
    return "quart"


@dataclass
class Setting:
    """A desk and everything behind it."""

    desk: DeviceDesk
    server: EnrollmentServer
    sightings: Sightings
    data_plane: DataPlane

    def has(self, status: DeviceStatus, **changes: Any) -> None:
        """Know one device, whose token is `TOKEN`."""
        user = User("u1", "acme/alice", Organization("o1", "acme"), tier="free")
        caller = Principal(SubjectKind.DEVICE, DEVICE_ID, "laptop", user, "r1", tier="paid")
        values = {"principal": caller, **changes}
        device = Device(DEVICE_ID, "Ada's laptop", status, **values)
        self.use(devices_by_sha256={hashlib.sha256(TOKEN.encode()).digest(): device})

    def use(self, **changes: Any) -> None:
        snapshot = self.data_plane.configuration.get()
        self.data_plane.use(dataclasses.replace(snapshot, **changes))

    async def register(
        self,
        address: str = "203.0.113.9",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> HttpAnswer:
        if body is None:
            body = json.dumps({"deviceName": "Ada's laptop", **fields}).encode()
        headers = {**JSON, **(headers or {})}
        request = HttpRequest("POST", "/v1/devices/register", headers, body, address)
        return await register_device(self.desk, request)

    def me(self, **headers: str) -> HttpAnswer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return my_device(self.desk, HttpRequest("GET", "/v1/devices/me", named, b"", "203.0.113.9"))


@pytest.fixture
async def setting(data_plane: DataPlane, redis_server: RunningRedis) -> AsyncIterator[Setting]:
    server = EnrollmentServer()
    await server.start()
    # Patient: the machine that runs the tests may be busy, and this is not about time.
    guards = Guards(
        redis_server.url, lambda: True, hash_tag=secrets.token_hex(6), timeout_seconds=5.0
    )
    enrollment = Enrollment([server.address], "t" * 32, "node-1")
    sightings = Sightings()
    desk = DeviceDesk(data_plane.pipeline, guards, enrollment, sightings)
    yield Setting(desk, server, sightings, data_plane)
    await enrollment.aclose()
    await guards.aclose()
    await server.die()


def body_of(answer: HttpAnswer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body)
    return body


def assert_refused(answer: HttpAnswer, status: int, code: str) -> dict[str, Any]:
    """Return the details of a refusal in OpenAI's dialect."""
    error = body_of(answer)["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert dict(answer.headers)["x-tollkeeper-error"] == code
    assert_headers(answer)
    details: dict[str, Any] = error.get("details", {})
    return details


def assert_headers(answer: HttpAnswer) -> None:
    headers = dict(answer.headers)
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert headers["x-request-id"] == headers["request-id"] != ""


async def test_a_device_is_registered_and_gets_its_credential_once(setting: Setting) -> None:
    answer = await setting.register(
        headers={
            "user-agent": "Application/1.0",
            "content-type": "Application/JSON; charset=utf-8",
        },
        platform="macos",
        version="1.4.2",
    )

    assert answer.status == 201
    assert_headers(answer)
    body = body_of(answer)
    message = body.pop("message")
    assert body == {"deviceId": "d1", "sessionToken": "tks_1", "status": "pending_approval"}
    assert "approve" in message
    (request,) = setting.server.requests
    assert (request.device_name, request.platform, request.version) == (
        "Ada's laptop",
        "macos",
        "1.4.2",
    )
    assert (request.address, request.user_agent) == ("203.0.113.9", "Application/1.0")


async def test_a_registered_device_is_told_where_help_is(setting: Setting) -> None:
    setting.use(service=Service(support_url="https://help.example.com"))

    body = body_of(await setting.register())

    assert body["supportUrl"] == "https://help.example.com"
    assert "https://help.example.com" in body["message"]


@pytest.mark.parametrize(
    "status", [DeviceStatus.PENDING_APPROVAL, DeviceStatus.APPROVED, DeviceStatus.SUSPENDED]
)
@pytest.mark.parametrize("with_id", [True, False])
async def test_a_device_that_proves_its_token_is_registered_already(
    setting: Setting, status: DeviceStatus, with_id: bool
) -> None:
    setting.has(status, suspended_until_ms=FAR_MS)
    headers = {"x-session-token": TOKEN, "user-agent": "ua", "x-device-platform": "macos"}
    if with_id:
        headers["x-device-id"] = DEVICE_ID

    answer = await setting.register(headers=headers)

    assert assert_refused(answer, 409, "device_already_registered") == {
        "deviceId": DEVICE_ID,
        "status": status.value,
    }
    assert setting.server.requests == []
    (sighting,) = setting.sightings.take()
    assert (sighting.device_id, sighting.address) == (DEVICE_ID, "203.0.113.9")
    assert (sighting.user_agent, sighting.platform) == ("ua", "macos")


async def test_a_suspension_that_is_over_reads_as_approved(setting: Setting) -> None:
    setting.has(DeviceStatus.SUSPENDED, suspended_until_ms=1)

    answer = await setting.register(headers={"x-session-token": TOKEN})

    assert assert_refused(answer, 409, "device_already_registered")["status"] == "approved"


@pytest.mark.parametrize(
    "status", [DeviceStatus.REJECTED, DeviceStatus.REVOKED, DeviceStatus.UNKNOWN]
)
async def test_a_device_that_may_never_call_may_register_anew(
    setting: Setting, status: DeviceStatus
) -> None:
    setting.has(status)

    answer = await setting.register(headers={"x-session-token": TOKEN})

    assert answer.status == 201


async def test_a_device_that_was_revoked_a_moment_ago_may_register_anew(setting: Setting) -> None:
    setting.has(DeviceStatus.APPROVED)
    setting.use(revoked=frozenset({("device", DEVICE_ID)}))

    assert (await setting.register(headers={"x-session-token": TOKEN})).status == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"x-session-token": "tks_" + "U" * 43, "x-device-id": DEVICE_ID},
        {"x-session-token": TOKEN, "x-device-id": "somebodyelse"},
        {"x-device-id": DEVICE_ID},
        {"x-session-token": "\xff"},
    ],
)
async def test_a_token_that_proves_nothing_is_passed_over(
    setting: Setting, headers: dict[str, str]
) -> None:
    setting.has(DeviceStatus.APPROVED)

    assert (await setting.register(headers=headers)).status == 201
    assert not setting.sightings


async def test_a_device_that_is_registered_already_does_not_use_up_the_throttle(
    setting: Setting,
) -> None:
    setting.has(DeviceStatus.APPROVED)
    for _ in range(31):
        answer = await setting.register(headers={"x-session-token": TOKEN})
        assert answer.status == 409

    assert (await setting.register()).status == 201


async def test_an_address_that_registers_too_often_is_told_when_to_come_back(
    setting: Setting,
) -> None:
    answers = await asyncio.gather(*(setting.register() for _ in range(20)))
    answers += await asyncio.gather(*(setting.register() for _ in range(10)))
    assert {answer.status for answer in answers} == {201}

    refused = await setting.register()

    details = assert_refused(refused, 429, "rate_limit_exceeded")
    assert details["layer"] == "registrations_per_address"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", details["resets_at"])
    wait = dict(refused.headers)["retry-after"]
    assert wait.isdigit()
    assert 100 <= int(wait) <= 124
    assert len(setting.server.requests) == 30
    assert (await setting.register("203.0.113.10")).status == 201


async def test_addresses_of_one_64_are_one(setting: Setting) -> None:
    statuses = [
        (await setting.register(f"2001:db8:0:1::{number:x}")).status for number in range(31)
    ]

    assert statuses == [201] * 30 + [429]
    assert (await setting.register("2001:db8:0:2::1")).status == 201
    assert {each.address_prefix for each in setting.server.requests} == {
        "2001:db8:0:1::/64",
        "2001:db8:0:2::/64",
    }


async def test_all_addresses_together_have_a_throttle(setting: Setting) -> None:
    for number in range(60):
        assert (await setting.register(f"10.0.0.{number // 25}")).status == 201
    answer = await setting.register("203.0.113.77")
    while answer.status == 201:
        # Meanwhile a second went by, and one more passes.
        answer = await setting.register("203.0.113.77")

    assert assert_refused(answer, 429, "rate_limit_exceeded")["layer"] == "registrations"
    assert 1 <= int(dict(answer.headers)["retry-after"]) <= 2


async def test_a_body_beyond_4_kib_is_refused_by_what_it_announces_and_by_what_it_is(
    setting: Setting,
) -> None:
    announced = await setting.register(headers={"content-length": "4097"})
    huge = await setting.register(headers={"content-length": "9" * 5_000})
    sent = await setting.register(body=b" " * 4_097)

    for answer in (announced, huge, sent):
        details = assert_refused(answer, 413, "request_too_large")
        assert details == {"limit_bytes": 4096}
    assert setting.server.requests == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_that_says_so_is_taken(setting: Setting, content_type: str) -> None:
    answer = await setting.register(headers={"content-type": content_type})

    assert_refused(answer, 415, "unsupported_media_type")


async def test_a_body_that_is_wrong_names_its_field_and_costs_nothing(setting: Setting) -> None:
    for _ in range(31):
        answer = await setting.register(deviceName=" ")
        assert_refused(answer, 400, "invalid_request")
    assert body_of(answer)["error"]["param"] == "deviceName"

    assert (await setting.register()).status == 201


async def test_too_many_devices_that_wait_are_a_limit_of_its_own(setting: Setting) -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=90))
    setting.server.act = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, retry)

    answer = await setting.register()

    assert assert_refused(answer, 429, "rate_limit_exceeded") == {"layer": "pending_devices"}
    assert dict(answer.headers)["retry-after"] == "90"


async def test_without_a_control_plane_nothing_is_registered(
    setting: Setting, data_plane: DataPlane
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    away = Enrollment([address], "t" * 32, "node-1")
    setting.desk = dataclasses.replace(setting.desk, enrollment=away)

    answer = await setting.register()

    assert_refused(answer, 503, "control_plane_unavailable")
    assert dict(answer.headers)["retry-after"] == "5"
    await away.aclose()


async def test_without_redis_nothing_is_registered(setting: Setting) -> None:
    guards = Guards("redis://127.0.0.1:1", lambda: True)
    setting.desk = dataclasses.replace(setting.desk, guards=guards)

    answer = await setting.register()

    assert_refused(answer, 503, "limits_unavailable")
    assert dict(answer.headers)["retry-after"] == "5"
    assert setting.server.requests == []
    await guards.aclose()


async def test_without_a_configuration_nothing_is_registered_and_nobody_known(
    setting: Setting,
) -> None:
    setting.data_plane.configuration.snapshot = None

    assert_refused(await setting.register(), 503, "configuration_unavailable")
    mine = setting.me(x_device_id=DEVICE_ID, x_session_token=TOKEN)
    assert_refused(mine, 503, "configuration_unavailable")


async def test_a_proxy_that_stops_registers_nobody(setting: Setting) -> None:
    setting.data_plane.pipeline.is_draining = True

    assert_refused(await setting.register(), 503, "draining")
    assert setting.server.requests == []


async def test_a_device_sees_who_it_acts_for(setting: Setting) -> None:
    setting.has(DeviceStatus.APPROVED)

    answer = setting.me(
        x_device_id=DEVICE_ID, x_session_token=TOKEN, user_agent="ua", x_device_version="1.4.2"
    )

    assert answer.status == 200
    assert_headers(answer)
    assert body_of(answer) == {
        "deviceId": DEVICE_ID,
        "deviceName": "Ada's laptop",
        "status": "approved",
        "user": "acme/alice",
        "organization": "acme",
        "tier": "paid",
    }
    (sighting,) = setting.sightings.take()
    assert abs(sighting.seen_at_ms - time.time() * 1000) < 5_000
    assert sighting == Sighting(DEVICE_ID, sighting.seen_at_ms, "203.0.113.9", "ua", "", "1.4.2")


@pytest.mark.parametrize(
    "status",
    [
        DeviceStatus.PENDING_APPROVAL,
        DeviceStatus.REJECTED,
        DeviceStatus.REVOKED,
        DeviceStatus.UNKNOWN,
    ],
)
async def test_a_device_that_may_not_call_may_ask_how_it_stands(
    setting: Setting, status: DeviceStatus
) -> None:
    setting.has(status, principal=None)

    answer = setting.me(x_device_id=DEVICE_ID, x_session_token=TOKEN)

    assert answer.status == 200
    assert body_of(answer) == {
        "deviceId": DEVICE_ID,
        "deviceName": "Ada's laptop",
        "status": status.value,
    }


async def test_a_suspended_device_is_told_until_when_and_why(setting: Setting) -> None:
    setting.has(DeviceStatus.SUSPENDED, suspended_until_ms=FAR_MS, suspension_reason="lost")

    body = body_of(setting.me(x_device_id=DEVICE_ID, x_session_token=TOKEN))

    assert body["status"] == "suspended"
    assert body["suspendedUntil"] == "2100-01-01T00:00:00Z"
    assert body["suspensionReason"] == "lost"


async def test_a_suspension_that_is_over_is_told_no_more(setting: Setting) -> None:
    setting.has(DeviceStatus.SUSPENDED, suspended_until_ms=1, suspension_reason="lost")

    body = body_of(setting.me(x_device_id=DEVICE_ID, x_session_token=TOKEN))

    assert body["status"] == "approved"
    assert not {"suspendedUntil", "suspensionReason"} & set(body)


async def test_a_revocation_shows_before_the_configuration_that_contains_it(
    setting: Setting,
) -> None:
    setting.has(DeviceStatus.APPROVED)
    setting.use(revoked=frozenset({("device", DEVICE_ID)}))

    body = body_of(setting.me(x_device_id=DEVICE_ID, x_session_token=TOKEN))

    assert body["status"] == "revoked"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_credentials"),
        ({"x_device_id": DEVICE_ID}, 401, "missing_credentials"),
        ({"x_session_token": TOKEN}, 401, "missing_credentials"),
        ({"authorization": f"Bearer {KEY}"}, 401, "missing_credentials"),
        ({"x_device_id": DEVICE_ID, "x_session_token": "tks_x"}, 401, "invalid_api_key"),
        ({"x_device_id": "other", "x_session_token": TOKEN}, 401, "invalid_api_key"),
        (
            {"x_device_id": DEVICE_ID, "x_session_token": TOKEN, "x_api_key": KEY},
            400,
            "duplicate_credentials",
        ),
    ],
)
async def test_whoever_proves_no_device_is_told_nothing(
    setting: Setting, headers: dict[str, str], status: int, code: str
) -> None:
    setting.has(DeviceStatus.APPROVED)

    assert_refused(setting.me(**headers), status, code)
    assert not setting.sightings
