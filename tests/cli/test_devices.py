"""What the commands of devices ask of the control plane, and what they print."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tollkeeper.admin.v1.changes_pb2 import AppliedRevocation, DeleteResult, RevocationReceipt
from tollkeeper.admin.v1.device_service_pb2 import (
    Device,
    ListDevicesResponse,
    RotateSessionTokenResponse,
)
from tollkeeper.common.v1.devices_pb2 import DeviceStatus

from controlplane.cli.devices import Status
from controlplane.cli.plain import record_of
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane

RunJson = Callable[..., Any]
SESSION_TOKEN = "tks_" + "s" * 43


def suspended_device() -> Device:
    device = Device(
        id="3k2v9q0m5t7x",
        name="Alice's laptop",
        status=DeviceStatus.DEVICE_STATUS_SUSPENDED,
        user="acme/alice",
        suspension_reason="too many",
        revision=7,
    )
    device.suspended_until.FromDatetime(datetime(2026, 11, 22, 12, tzinfo=UTC))
    return device


@pytest.mark.parametrize("status", Status)
def test_devices_are_listed_by_where_they_stand(
    run_json: RunJson, control_plane: ScriptedControlPlane, status: Status
) -> None:
    run_json("device", "list", "--status", status, "--user", "acme/alice")

    request = control_plane.only_request()
    assert record_of(request)["status"] == status
    assert request.user == "acme/alice"


def test_every_status_can_be_asked_for() -> None:
    assert len(Status) == len(DeviceStatus.values()) - 1


def test_all_devices_of_all_pages_are_listed(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListDevices",
        ListDevicesResponse(devices=[Device(id="a")], next_page_token="2"),
        ListDevicesResponse(devices=[Device(id="b")]),
    )

    assert [device["id"] for device in run_json("device", "list")] == ["a", "b"]
    requests = control_plane.requests("ListDevices")
    assert [request.page_token for request in requests] == ["", "2"]
    assert {request.status for request in requests} == {DeviceStatus.DEVICE_STATUS_UNSPECIFIED}


def test_a_device_is_shown_with_a_word_an_instant_and_numbers(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetDevice", suspended_device())

    shown = run_json("device", "get", "3k2v9q0m5t7x")

    assert control_plane.only_request().id == "3k2v9q0m5t7x"
    assert (shown["status"], shown["revision"]) == ("suspended", 7)
    assert shown["suspended_until"] == "2026-11-22T12:00:00Z"
    assert shown["last_seen_at"] is None


def test_a_table_of_devices_says_who_has_them_and_where_they_stand(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    waiting = Device(id="b", name="cli", status=DeviceStatus.DEVICE_STATUS_PENDING_APPROVAL)
    control_plane.will_answer("ListDevices", ListDevicesResponse(devices=[waiting]))

    heading, *_, row = run("device", "list").stdout.splitlines()

    shown = dict(zip(heading.split(), row.split(), strict=True))
    assert (shown["id"], shown["status"], shown["user"]) == ("b", "pending_approval", "-")


def test_an_approval_gives_a_device_a_user_a_tier_a_router_and_models(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ApproveDevice", Device(id="d1", status=DeviceStatus.DEVICE_STATUS_APPROVED)
    )

    printed = run_json(
        *["device", "approve", "d1", "--user", "acme/alice", "--tier", "paid"],
        *["--router", "acme/r1", "--models", "gpt-*,o3", "--models", "claude-*"],
    )

    request = control_plane.only_request()
    assert (request.id, request.user, request.tier) == ("d1", "acme/alice", "paid")
    assert request.router == "acme/r1"
    assert list(request.allowed_models) == ["gpt-*", "o3", "claude-*"]
    assert printed["status"] == "approved"


@pytest.mark.parametrize("flags", [[], ["--tier", "none"], ["--tier", ""]])
def test_an_approval_without_a_tier_leaves_the_users(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: list[str]
) -> None:
    run_json("device", "approve", "d1", "--user", "acme/alice", *flags)

    request = control_plane.only_request()
    assert (request.tier, request.router, list(request.allowed_models)) == ("", "default", [])


@pytest.mark.parametrize(("verb", "rpc"), [("reject", "RejectDevice"), ("resume", "ResumeDevice")])
def test_a_verb_without_details_names_the_device(
    run_json: RunJson, control_plane: ScriptedControlPlane, verb: str, rpc: str
) -> None:
    control_plane.will_answer(rpc, Device(id="d1", name="cli"))

    assert run_json("device", verb, "d1")["name"] == "cli"
    assert [request.id for request in control_plane.requests(rpc)] == ["d1"]


@pytest.mark.parametrize(
    ("flags", "seconds"), [([], 86_400), (["--for", "2w"], 1_209_600), (["--for", "1500ms"], 1.5)]
)
def test_a_suspension_is_for_a_day_unless_it_says_otherwise(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: list[str], seconds: float
) -> None:
    control_plane.will_answer("SuspendDevice", suspended_device())

    printed = run_json("device", "suspend", "d1", *flags, "--reason", "too many")

    request = control_plane.only_request()
    assert request.id == "d1"
    assert request.period.ToTimedelta().total_seconds() == seconds
    assert request.reason == "too many"
    assert printed["suspension_reason"] == "too many"


@pytest.mark.parametrize("flag", ["--terminate", "--terminate-streams"])
def test_a_revoked_device_has_a_receipt(
    run_json: RunJson, control_plane: ScriptedControlPlane, flag: str
) -> None:
    receipt = RevocationReceipt(
        revision=12, applied=[AppliedRevocation(node="n1", ms=3, is_kept=True)]
    )
    control_plane.will_answer("RevokeDevice", receipt)

    printed = run_json("device", "revoke", "d1", "--wait", "20s", flag)

    (asked,) = control_plane.asked
    assert (asked.request.id, asked.request.wait_ms) == ("d1", 20_000)
    assert asked.request.terminate_streams
    assert asked.remaining_s > 25
    assert printed == {
        "revision": 12,
        "applied": [{"node": "n1", "ms": 3, "is_kept": True}],
        "missing": [],
    }


def test_a_revocation_of_a_device_that_misses_a_node_is_done_and_says_so(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("RevokeDevice", RevocationReceipt(revision=12, missing=["n2"]))

    result = run("device", "revoke", "d1", "-o", "json")

    assert result.exit_code == 0
    assert control_plane.only_request().wait_ms == 2000
    assert json.loads(result.stdout)["missing"] == ["n2"]
    assert "n2" in result.stderr


def test_another_session_token_is_shown_once_and_said_to_be(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "RotateSessionToken",
        RotateSessionTokenResponse(device=Device(id="d1"), session_token=SESSION_TOKEN),
    )

    result = run("device", "rotate", "d1", "-o", "json")

    assert control_plane.only_request().id == "d1"
    assert json.loads(result.stdout) == {"id": "d1", "session_token": SESSION_TOKEN}
    assert "once" in result.stderr
    assert SESSION_TOKEN not in result.stderr


@pytest.mark.parametrize(
    ("flags", "path", "device"),
    [
        ("--name cli", "name", Device(id="d1", name="cli")),
        ("--tier paid", "tier", Device(id="d1", tier="paid")),
        ("--tier none", "tier", Device(id="d1")),
        ("--router acme/r1", "router", Device(id="d1", router="acme/r1")),
        ("--models a,b", "allowed_models", Device(id="d1", allowed_models=["a", "b"])),
    ],
)
def test_an_update_of_a_device_names_only_what_was_given(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: str, path: str, device: Device
) -> None:
    run_json("device", "update", "d1", *flags.split())

    request = control_plane.only_request()
    assert list(request.update_mask.paths) == [path]
    assert request.device == device


def test_a_device_is_deleted_by_its_id(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("DeleteDevice", DeleteResult(revision=3))

    assert run_json("device", "delete", "d1") == {"revision": 3, "also_deleted": []}
    assert control_plane.only_request().id == "d1"
