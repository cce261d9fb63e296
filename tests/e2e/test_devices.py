"""A device's life, as its user and its operator see it."""

import time
from functools import partial
from typing import Any

import httpx

from tests.e2e.customers import new_user
from tests.e2e.devices import Device, register
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

PROPAGATION_S = 1.0
SUSPENSION_S = 3.0


def refusal(answer: httpx.Response) -> tuple[int, str, dict[str, Any]]:
    details: dict[str, Any] = answer.json()["error"].get("details", {})
    return answer.status_code, answer.headers["x-tollkeeper-error"], details


def is_everywhere(http: httpx.Client, stack: Stack, device: Device, wanted: int) -> bool:
    """Tell whether all replicas answer with that status within the promised second from now."""
    ends_at = time.monotonic() + PROPAGATION_S
    for base_url in stack.base_urls:
        while device.call(http, base_url).status_code != wanted:
            if time.monotonic() > ends_at:
                return False
    return True


def test_a_device_is_registered_approved_suspended_and_revoked_on_every_replica(
    stack: Stack, http: httpx.Client
) -> None:
    user = new_user(stack)["name"]
    device = register(stack, http)

    # Both know it from the moment of the answer on: one that does not would say 401.
    for base_url in stack.base_urls:
        pending = (403, "device_not_approved", {"status": "pending_approval"})
        assert refusal(device.call(http, base_url)) == pending
    waiting = stack.tollkeeper("device", "list", "--status", "pending_approval")
    assert device.device_id in {each["id"] for each in waiting}

    stack.tollkeeper("device", "approve", device.device_id, "--user", user)
    assert is_everywhere(http, stack, device, 200)

    suspended_at = time.monotonic()
    stack.tollkeeper("device", "suspend", device.device_id, "--for", "3s", "--reason", "too loud")
    assert is_everywhere(http, stack, device, 403)
    status, code, details = refusal(device.call(http, stack.base_urls[0]))
    assert (status, code, details["reason"]) == (403, "device_suspended", "too loud")
    assert details["suspended_until"].endswith("Z")
    for base_url in stack.base_urls:
        eventually(partial(device.may_call, http, base_url), 8.0)
    assert time.monotonic() - suspended_at >= SUSPENSION_S
    assert stack.tollkeeper("device", "get", device.device_id)["status"] == "approved"

    receipt = stack.tollkeeper("device", "revoke", device.device_id, "--wait", "2s")
    assert sorted(each["node"] for each in receipt["applied"]) == ["dev-1", "dev-2"]
    assert receipt["missing"] == []
    for base_url in stack.base_urls:
        revoked = (403, "device_not_approved", {"status": "revoked"})
        assert refusal(device.call(http, base_url)) == revoked


def test_the_audit_log_shows_who_did_what_to_a_device_and_no_token(
    stack: Stack, http: httpx.Client
) -> None:
    user = new_user(stack)["name"]
    device = register(stack, http)
    stack.tollkeeper("device", "approve", device.device_id, "--user", user, "--tier", "free")
    stack.tollkeeper("device", "suspend", device.device_id, "--reason", "too loud")
    stack.tollkeeper("device", "resume", device.device_id)
    rotated = stack.tollkeeper("device", "rotate", device.device_id)["session_token"]
    stack.tollkeeper("device", "revoke", device.device_id)

    entries = stack.tollkeeper("audit", "list", "--resource", device.device_id)

    seen = [
        (
            entry["actor"],
            entry["rpc"],
            (change["before"] or {}).get("status"),
            (change["after"] or {}).get("status"),
        )
        for entry in reversed(entries)
        for change in entry["changes"]
    ]
    nodes = {"node:dev-1", "node:dev-2"}
    assert seen[0][0] in nodes
    assert [each[1:] for each in seen] == [
        ("RegisterDevice", None, "pending_approval"),
        ("ApproveDevice", "pending_approval", "approved"),
        ("SuspendDevice", "approved", "suspended"),
        ("ResumeDevice", "suspended", "approved"),
        ("RotateSessionToken", None, None),
        ("RevokeDevice", "approved", "revoked"),
    ]
    assert {each[0] for each in seen[1:]} == {"bootstrap"}
    text = repr(entries)
    assert device.token not in text
    assert rotated not in text
    approval = next(entry for entry in entries if entry["rpc"] == "ApproveDevice")
    [change] = approval["changes"]
    assert change["after"]["tier"] == "free"
    assert entries[0]["at"] >= entries[-1]["at"]


def test_a_rotated_token_takes_the_place_of_the_old_one(stack: Stack, http: httpx.Client) -> None:
    device = register(stack, http)
    stack.tollkeeper("device", "approve", device.device_id, "--user", new_user(stack)["name"])
    assert is_everywhere(http, stack, device, 200)

    token = stack.tollkeeper("device", "rotate", device.device_id)["session_token"]

    assert is_everywhere(http, stack, Device(device.device_id, token), 200)
    assert is_everywhere(http, stack, device, 401)


def test_a_device_that_proves_its_token_is_not_registered_again(
    stack: Stack, http: httpx.Client
) -> None:
    device = register(stack, http)
    twin = register(stack, http)
    assert twin.device_id != device.device_id

    again = http.post(
        f"{stack.base_urls[1]}/v1/devices/register",
        json={"deviceName": "phone"},
        headers=device.headers,
    )

    assert refusal(again) == (
        409,
        "device_already_registered",
        {"deviceId": device.device_id, "status": "pending_approval"},
    )


def test_what_a_device_is_seen_with_reaches_its_operator(stack: Stack, http: httpx.Client) -> None:
    device = register(stack, http)
    stack.tollkeeper("device", "approve", device.device_id, "--user", new_user(stack)["name"])
    assert is_everywhere(http, stack, device, 200)

    said = {
        "user-agent": "phone/2.0",
        "x-device-platform": "android",
        "x-device-version": "2.0",
        "x-forwarded-for": "203.0.113.99",
    }
    answer = http.get(f"{stack.base_urls[0]}/v1/devices/me", headers={**device.headers, **said})

    assert (answer.json()["status"], answer.json()["deviceId"]) == ("approved", device.device_id)

    def seen() -> bool:
        shown = stack.tollkeeper("device", "get", device.device_id)
        wanted = ("phone/2.0", "android", "2.0", "203.0.113.99")
        found = tuple(shown[name] for name in ("user_agent", "platform", "version", "address"))
        return found == wanted and bool(shown["last_seen_at"])

    # Batched: nobody is told at once.
    eventually(seen, 30.0, pause_s=0.5)
