"""Calls by device: who is let in, what counts them, and what their callers read."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from msgspec.structs import replace as changed

from dataplane.domain.limiting import SubjectKind
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import Device, DeviceStatus, LimitEntry, Principal, Tier
from tests.pipeline.conftest import DataPlane

TOKEN = "tks_" + "D" * 43
FREE = Tier(
    "free",
    device_limits=(LimitEntry("requests", "day", 3),),
    ip_limits=(LimitEntry("requests", "day", 5),),
    user_limits=(LimitEntry("requests", "day", 7),),
    credential_limits=(LimitEntry("requests", "minute", 60),),
)


def admit_device(data_plane: DataPlane, tier: Tier = FREE, **changes: object) -> Principal:
    """Put a device of the key's user in force, beside the key, on a tier."""
    snapshot = data_plane.configuration.get()
    [key] = snapshot.keys_by_sha256.values()
    user = key.principal.user
    caller = Principal(SubjectKind.DEVICE, "device000001", "phone", user, "r1", tier=tier.name)
    device = Device("device000001", "phone", DeviceStatus.APPROVED, caller)
    device = changed(device, **changes)
    digest = hashlib.sha256(TOKEN.encode()).digest()
    data_plane.use(
        replace(
            snapshot,
            devices_by_sha256={digest: device},
            tiers={tier.name: tier},
            _plans=PlanCache(),
            _call_plans=PlanCache(),
        )
    )
    return caller


async def call(
    data_plane: DataPlane, headers: Mapping[str, str] | None = None, path: str = "chat/completions"
) -> httpx.Response:
    own = {"x-device-id": "device000001", "x-session-token": TOKEN}
    body = {
        "model": "mock-echo",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "hello"}],
    }
    request = data_plane.client.build_request(
        "POST", f"/v1/{path}", json=body, headers=own if headers is None else headers
    )
    del request.headers["authorization"]
    return await data_plane.client.send(request)


async def test_an_approved_device_gets_an_answer_and_is_in_the_ledger(
    data_plane: DataPlane,
) -> None:
    admit_device(data_plane)

    answer = await call(data_plane)

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    [record] = data_plane.records.closes
    assert (record.device_id, record.key_id, record.key) == ("device000001", "", "")
    assert (record.user, record.tier, record.ip) == ("acme/alice", "free", "127.0.0.1")


async def test_a_device_reads_what_is_left_of_its_day_and_its_addresss(
    data_plane: DataPlane,
) -> None:
    admit_device(data_plane)

    first, second = await call(data_plane), await call(data_plane)

    assert first.headers["x-ratelimit-limit-device"] == "3"
    assert [each.headers["x-ratelimit-remaining-device"] for each in (first, second)] == ["2", "1"]
    reset = datetime.fromisoformat(first.headers["x-ratelimit-reset-device"])
    assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 86_401
    assert first.headers["x-ratelimit-limit-ip"] == "5"
    assert [each.headers["x-ratelimit-remaining-ip"] for each in (first, second)] == ["4", "3"]


async def test_a_refused_device_reads_them_too_and_where_to_upgrade(data_plane: DataPlane) -> None:
    admit_device(data_plane)
    for _ in range(3):
        assert (await call(data_plane)).status_code == 200

    refused = await call(data_plane)

    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-device"] == "0"
    assert refused.headers["x-ratelimit-remaining-ip"] == "2"
    details = refused.json()["error"]["details"]
    assert details["layer"] == "device_requests_per_day"
    assert details["upgrade_url"] == "https://example.com/upgrade"


async def test_callers_by_key_read_nothing_of_their_address(data_plane: DataPlane) -> None:
    admit_device(data_plane)

    answer = await data_plane.chat()

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.endswith(("-ip", "-device"))]
    assert '"key_requests_per_minute"' in answer.headers["ratelimit-policy"]
    assert '"ip_requests' not in answer.headers["ratelimit-policy"]


async def test_a_key_and_a_device_of_one_tier_share_the_address_and_a_refusal_moves_nothing(
    data_plane: DataPlane,
) -> None:
    caller = admit_device(data_plane)
    for _ in range(3):
        await call(data_plane)
    for _ in range(2):
        assert (await data_plane.chat()).status_code == 200
    before = await balances(data_plane, caller)

    refused = await data_plane.chat()

    assert refused.json()["error"]["details"] == {
        "layer": "ip_requests_per_day",
        "window": "day",
        "resets_at": refused.json()["error"]["details"]["resets_at"],
        "upgrade_url": "https://example.com/upgrade",
    }
    assert (await call(data_plane)).status_code == 429
    assert await balances(data_plane, caller) == before
    assert before["ip_requests_per_day"] == before["user_requests_per_day"] == 5


async def balances(data_plane: DataPlane, caller: Principal) -> dict[str, int]:
    plan = data_plane.configuration.get().plan_for(caller, "127.0.0.1", "", "", 0)
    found = await data_plane.limiter.balances(plan)
    return {each.layer.name: each.settled for each in found}


@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize(
    ("status", "code", "details"),
    [
        (
            DeviceStatus.PENDING_APPROVAL,
            "device_not_approved",
            {"status": "pending_approval"},
        ),
        (DeviceStatus.REVOKED, "device_not_approved", {"status": "revoked"}),
        (
            DeviceStatus.SUSPENDED,
            "device_suspended",
            {"reason": "loud", "suspended_until": "2100-01-01T00:00:00Z"},
        ),
    ],
)
async def test_a_device_that_may_not_call_learns_why_in_its_dialect(
    data_plane: DataPlane, status: DeviceStatus, code: str, details: dict[str, str], path: str
) -> None:
    admit_device(
        data_plane, status=status, suspended_until_ms=4_102_444_800_000, suspension_reason="loud"
    )

    answer = await call(data_plane, path=path)

    assert answer.status_code == 403
    assert answer.headers["x-tollkeeper-error"] == code
    assert answer.json()["error"]["details"] == details
    assert data_plane.records.opens == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"x-device-id": "device000001"}, 401, "missing_credentials"),
        ({"x-session-token": TOKEN}, 401, "missing_credentials"),
        ({"x-device-id": "device000002", "x-session-token": TOKEN}, 401, "invalid_api_key"),
        ({"x-device-id": "device000001", "x-session-token": "tks_x"}, 401, "invalid_api_key"),
    ],
)
async def test_half_a_credential_or_a_wrong_one_is_refused(
    data_plane: DataPlane, headers: dict[str, str], status: int, code: str
) -> None:
    admit_device(data_plane)

    answer = await call(data_plane, headers)

    assert (answer.status_code, answer.headers["x-tollkeeper-error"]) == (status, code)
    if code == "missing_credentials":
        absent = "X-Session-Token" if "x-device-id" in headers else "X-Device-ID"
        assert f"{absent} is missing" in answer.json()["error"]["message"]


async def test_a_device_sees_its_models(data_plane: DataPlane) -> None:
    admit_device(data_plane)
    request = data_plane.client.build_request(
        "GET", "/v1/models", headers={"x-device-id": "device000001", "x-session-token": TOKEN}
    )
    del request.headers["authorization"]

    answer = await data_plane.client.send(request)

    assert "mock-echo" in {each["id"] for each in answer.json()["data"]}
