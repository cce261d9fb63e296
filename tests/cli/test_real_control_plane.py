"""The program against a control plane as it is shipped, as a process of its own."""

import base64
import json
import os
import secrets
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as enrollment_pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as enrollment_rpc

from tests.cli.conftest import Run

_START_S = 20
_STOP_S = 10


@dataclass(frozen=True)
class Running:
    address: str
    token: str
    join_token: str


@pytest.fixture(scope="module")
def real_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("controlplane")
    folder.chmod(0o700)
    letters = string.ascii_letters + string.digits
    token = "tka_" + "".join(secrets.choice(letters) for _ in range(43))
    join_token = secrets.token_urlsafe(32)
    environment = {name: value for name, value in os.environ.items() if "TOLLKEEPER" not in name}
    environment |= {
        "TOLLKEEPER_DATA_DIR": str(folder),
        "TOLLKEEPER_ADMIN_PORT": "0",
        "TOLLKEEPER_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN": token,
        "TOLLKEEPER_JOIN_TOKEN": join_token,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        yield Running(_address(folder, process), token, join_token)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        finally:
            process.kill()


def _address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    ready = folder / "controlplane.ready"
    deadline = time.monotonic() + _START_S
    while not ready.exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, "the control plane did not start in time"
        time.sleep(0.02)  # looks again until the deadline
    address = json.loads(ready.read_text())["admin_address"]
    assert isinstance(address, str)
    return address


@pytest.fixture
def administer(
    program: Run, real_control_plane: Running, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """The program with `-o json`, as what it printed."""
    monkeypatch.setenv("TOLLKEEPER_ADMIN_ADDRESS", real_control_plane.address)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", real_control_plane.token)

    def run(line: str, stdin: str | None = None) -> Any:  # Any: JSON
        result = program(*line.split(), "-o", "json", stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def registered_device(running: Running) -> str:
    """Register a device as a data plane does, and return its id."""
    with grpc.insecure_channel(running.address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = enrollment_rpc.DeviceEnrollmentServiceStub(channel)
        request = enrollment_pb.RegisterDeviceRequest(
            node_id="n1",
            device_name="Alice's laptop",
            platform="macos",
            address="203.0.113.7",
            address_prefix="203.0.113.7",
        )
        metadata = (("authorization", f"Bearer {running.join_token}"),)
        response = stub.RegisterDevice(request, metadata=metadata, timeout=10)
        return str(response.device_id)


def test_a_gateway_is_set_up_changed_and_removed(administer: Callable[..., Any]) -> None:
    administer("org create acme --monthly-budget-usd 100 --time-zone Europe/Paris")
    administer("user create acme/alice --tier free --daily-requests 50")
    administer("provider create acme/up --kind mock --base-url http://127.0.0.1:9090")
    administer("credential create acme/up/main --secret-stdin", stdin="sk-1\n")
    rotated = administer("credential rotate acme/up/main --secret-stdin", stdin="sk-2\n")
    administer("router create acme/r1")
    rule = administer("rule create acme/r1 --priority 1 --provider acme/up --models *")
    administer(f"rule update {rule['id']} --weight 3")
    price = administer("price set --provider acme/up --model * --input-usd-per-million 0.15")
    administer("user update acme/alice --daily-requests none --tier paid")
    key = administer("key create acme/alice/laptop --router r1 --models gpt-* --expires 90d")
    administer("limit set --key acme/alice/laptop --parallel 2")

    limits = administer("limit get --user acme/alice")["limits"]
    assert [(limit["unit"], limit["unlimited"]) for limit in limits] == [("requests", True)]
    assert rotated["version"] == 2
    assert administer("rule list acme/r1")[0]["weight"] == 3
    assert (
        administer(f"price get {price['id']}")["rates"]["input_nanousd_per_million"] == 150_000_000
    )
    assert key["api_key"].startswith(f"tk_live_{key['id']}_")
    assert "api_key" not in administer("key get acme/alice/laptop")

    receipt = administer("key revoke acme/alice/laptop --wait 100ms")
    assert receipt["revision"] > key["revision"]
    assert (receipt["applied"], receipt["missing"]) == ([], [])
    assert administer("key get acme/alice/laptop")["revoked"] is True
    assert administer("logs --org acme") == []
    assert administer("usage --by model") == []
    assert administer("node list") == []
    assert administer("user suspend acme/alice")["suspended"] is True

    gone = administer("org delete acme --force")["also_deleted"]
    assert "key acme/alice/laptop" in gone


def test_a_refusal_names_its_reason_and_the_field(
    administer: Callable[..., Any], program: Run
) -> None:
    administer("org create twice")

    again = program("org", "create", "twice")
    invalid = program("org", "create", "Nicht_gut!")
    missing = program("user", "get", "twice/nobody")

    assert (again.exit_code, invalid.exit_code, missing.exit_code) == (1, 1, 1)
    assert again.stderr.startswith("refused: conflict: ")
    assert invalid.stderr.startswith("refused: invalid_request: ")
    assert "(field organization.name)" in invalid.stderr
    assert missing.stderr.startswith("refused: not_found: ")


def test_a_stranger_is_refused(
    administer: Callable[..., Any], program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_ADMIN_TOKEN", "tka_" + "A1b" * 14 + "x")

    result = program("org", "list")

    assert result.exit_code == 1
    assert result.stderr.startswith("refused: ")


def test_a_device_goes_through_its_life(
    administer: Callable[..., Any], program: Run, real_control_plane: Running
) -> None:
    administer("org create devices")
    administer("user create devices/alice")
    administer("router create default")
    device_id = registered_device(real_control_plane)

    (waiting,) = administer("device list --status pending_approval")
    assert (waiting["id"], waiting["platform"], waiting["user"]) == (device_id, "macos", "")
    approved = administer(
        f"device approve {device_id} --user devices/alice --tier free --models gpt-*"
    )
    assert (approved["status"], approved["router"]) == ("approved", "default")
    assert (approved["tier"], approved["allowed_models"]) == ("free", ["gpt-*"])
    suspended = administer(f"device suspend {device_id} --for 2h --reason busy")
    assert (suspended["status"], suspended["suspension_reason"]) == ("suspended", "busy")
    assert suspended["suspended_until"].endswith("Z")
    assert administer(f"device resume {device_id}")["suspended_until"] is None
    changed = administer(f"device update {device_id} --name laptop --tier none --router default")
    assert (changed["name"], changed["tier"]) == ("laptop", "")
    rotated = administer(f"device rotate {device_id}")
    assert rotated["id"] == device_id
    assert rotated["session_token"].startswith("tks_")
    limits = administer(f"limit set --device {device_id} --requests-per-day 3")
    assert limits["subject"] == f"device:{device_id}"
    assert [each["id"] for each in administer("device list --user devices/alice")] == [device_id]

    receipt = administer(f"device revoke {device_id} --wait 100ms")
    assert (receipt["applied"], receipt["missing"]) == ([], [])
    assert administer(f"device get {device_id}")["status"] == "revoked"
    again = program("device", "approve", device_id, "--user", "devices/alice")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "cannot approve a revoked device" in again.stderr

    calls = [each["rpc"] for each in administer(f"audit list --resource {device_id}")]
    assert calls[0] == "RevokeDevice"
    assert calls[-2:] == ["ApproveDevice", "RegisterDevice"]
    approval = program("audit", "list", "--resource", device_id, "--rpc", "ApproveDevice").stdout
    assert "status: pending_approval → approved" in approval
    assert rotated["session_token"] not in program("audit", "list", "-o", "json").stdout

    assert administer(f"device delete {device_id}")["revision"] > receipt["revision"]
    assert administer("device list") == []


def test_a_tier_is_made_changed_given_and_taken_away(
    administer: Callable[..., Any], program: Run
) -> None:
    administer("org create tiers")
    made = administer(
        "tier create trial --device-requests-per-day 20 --device-parallel 2"
        " --user-monthly-budget-usd 0.05"
    )
    assert [each["capacity"] for each in made["device_limits"]] == [20, 2]
    changed = administer("tier update trial --device-requests-per-day none --ip-requests-per-day 7")
    assert [each["unit"] for each in changed["device_limits"]] == ["parallel"]
    assert [each["capacity"] for each in changed["ip_limits"]] == [7]
    assert changed["user_limits"] == made["user_limits"]
    of_users = administer("limit set --tier trial --requests-per-day 9")
    assert {each["unit"] for each in of_users["limits"]} == {"spend", "requests"}
    administer("limit delete --tier trial --only monthly-budget-usd")
    assert [each["capacity"] for each in administer("limit get --tier trial")["limits"]] == [9]
    assert [each["name"] for each in administer("tier list")] == ["free", "paid", "trial"]

    assert administer("user create tiers/alice --tier trial")["tier"] == "trial"
    administer("router create tiers/r1")
    key = administer("key create tiers/alice/k --router r1 --tier trial")
    assert key["tier"] == "trial"
    held = program("tier", "delete", "trial")
    unknown = program("user", "update", "tiers/alice", "--tier", "gold")
    assert (held.exit_code, unknown.exit_code) == (1, 1)
    assert unknown.stderr.startswith("refused: not_found: ")
    assert administer("key update tiers/alice/k --tier none")["tier"] == ""
    assert administer("user update tiers/alice --tier none")["tier"] == ""
    assert administer("tier delete trial")["also_deleted"] == []


def test_limits_of_an_address_count_what_its_neighbours_share(
    administer: Callable[..., Any],
) -> None:
    limits = administer("limit set --ip 2001:db8:0:1::7 --requests-per-day 3")

    assert limits["subject"] == "ip:2001:db8:0:1::/64"
    assert administer("limit get --ip 2001:db8:0:1::8")["limits"] == limits["limits"]


def test_limits_are_overridden_for_a_while_and_counters_reset(
    administer: Callable[..., Any], program: Run
) -> None:
    administer("org create lent --monthly-budget-usd 10")
    administer("user create lent/alice --tier free")

    rate = administer("limit set --user lent/alice --requests 10 --every 1s --burst 20")["limits"]
    assert [(each["capacity"], each["every_ms"], each["burst"]) for each in rate] == [
        (10, 1000, 20)
    ]
    lent = administer("budget override --org lent --monthly-budget-usd 200 --for 24h")
    assert [each["limit"]["capacity"] for each in lent["temporary_limits"]] == [200_000_000_000]
    assert [each["capacity"] for each in lent["limits"]] == [10_000_000_000]
    again = administer("budget reset --org lent --only monthly-budget-usd")
    assert [each["reset_generation"] for each in again["resets"]] == [1]
    assert again["temporary_limits"] == lent["temporary_limits"]
    assert len(administer("user reset-quota lent/alice")["resets"]) == 12
    administer("limit delete --org lent --temporary")
    assert administer("limit get --org lent")["temporary_limits"] == []
    for subject in ("--endpoint chat", "--model @cf/meta/llama:free"):
        administer(f"limit set {subject} --requests-per-second 5")
        assert administer(f"limit get {subject}")["limits"][0]["every_ms"] == 1000
    opened = program("org", "update", "lent", "--on-limits-unavailable", "open")
    assert (opened.exit_code, opened.stdout) == (1, "")
    assert administer("org update lent --paused")["paused"] is True
    missing = program("explain", "01936b2e-0000-7000-8000-000000000001")
    assert missing.stderr.startswith("the ledger has no request ")


def test_the_status_of_a_service_without_data_planes_says_so(
    administer: Callable[..., Any], program: Run, real_control_plane: Running
) -> None:
    administer("org create status")

    result = program("status", "-o", "json")

    control_plane = json.loads(result.stdout)["control_plane"]
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, "no data plane is connected")
    assert control_plane["address"] == real_control_plane.address
    assert (control_plane["database"], control_plane["problems"]) == ("sqlite", [])
    assert control_plane["revision"] > 0
    assert len(control_plane["digest"]) == 64
    assert control_plane["schema"]
