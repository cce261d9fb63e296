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

import pytest

from tests.cli.conftest import Run

_START_S = 20
_STOP_S = 10


@dataclass(frozen=True)
class Running:
    address: str
    token: str


@pytest.fixture(scope="module")
def real_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("controlplane")
    folder.chmod(0o700)
    letters = string.ascii_letters + string.digits
    token = "tka_" + "".join(secrets.choice(letters) for _ in range(43))
    environment = {name: value for name, value in os.environ.items() if "TOLLKEEPER" not in name}
    environment |= {
        "TOLLKEEPER_DATA_DIR": str(folder),
        "TOLLKEEPER_ADMIN_PORT": "0",
        "TOLLKEEPER_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN": token,
        "TOLLKEEPER_JOIN_TOKEN": secrets.token_urlsafe(32),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        yield Running(address=_address(folder, process), token=token)
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
