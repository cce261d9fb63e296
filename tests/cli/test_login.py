"""`login` and `logout`, against a scripted gateway."""

import json
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli import device_login
from controlplane.cli.profile import (
    DeviceCredential,
    KeyCredential,
    Profile,
    profile_path,
    read_profile,
    write_profile,
)
from tests.cli.conftest import Run
from tests.cli.gateways import ScriptedGateway, serving_gateway

KEY = "tk_live_abcdefghijkl_" + "s" * 43 + "check0"
DEVICE_ID = "abcdefghijkl"
TOKEN = "tks_" + "t" * 43
REGISTER, ME, MODELS = "POST /v1/devices/register", "GET /v1/devices/me", "GET /v1/models"
LISTING = {"object": "list", "data": [{"id": "mock-echo"}, {"id": "gpt-4o"}]}
REGISTERED = {
    "deviceId": DEVICE_ID,
    "sessionToken": TOKEN,
    "status": "pending_approval",
    "message": "an operator approves it",
}


def state(status: str, **more: str) -> dict[str, str]:
    return {"deviceId": DEVICE_ID, "deviceName": "laptop", "status": status, **more}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    monkeypatch.setattr(device_login, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(device_login, "LONGEST_DELAY_S", 0.02)
    with serving_gateway() as scripted:
        yield scripted


def saved() -> Profile:
    profile = read_profile()
    assert profile is not None
    return profile


def test_a_key_is_kept_when_the_gateway_accepts_it(program: Run, gateway: ScriptedGateway) -> None:
    gateway.will_answer(MODELS, LISTING)

    result = program(
        "login", "--url", f"{gateway.url}/", "--api-key-stdin", "-o", "json", stdin=KEY
    )

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "url": gateway.url,
        "credential": "api_key",
        "models": 2,
        "profile": str(profile_path()),
    }
    assert KEY not in result.output
    assert gateway.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert saved() == Profile(gateway.url, KeyCredential(KEY))
    assert stat.S_IMODE(profile_path().stat().st_mode) == 0o600


def test_a_key_that_is_refused_is_not_kept_and_the_former_profile_stays(
    program: Run, gateway: ScriptedGateway
) -> None:
    former = Profile("https://former.example", KeyCredential("tk_former"))
    write_profile(former)
    gateway.will_refuse(MODELS, 401, "invalid_api_key")

    result = program("login", "--url", gateway.url, "--api-key-stdin", stdin=KEY)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: invalid_api_key: because of invalid_api_key\n"
    assert saved() == former


@pytest.mark.parametrize("listing", [[], {"hello": "world"}, "x"])
def test_nothing_is_kept_for_what_is_no_gateway(
    program: Run, gateway: ScriptedGateway, listing: object
) -> None:
    gateway.will_answer(MODELS, listing)

    result = program("login", "--url", gateway.url, "--api-key-stdin", stdin=KEY)

    assert result.exit_code == 1
    assert "not a gateway" in result.stderr
    assert read_profile() is None


def test_a_gateway_that_is_away_is_named(program: Run) -> None:
    result = program("login", "--url", "http://127.0.0.1:1", "--api-key-stdin", stdin=KEY)

    assert result.exit_code == 1
    assert "http://127.0.0.1:1" in result.stderr
    assert read_profile() is None


def test_the_url_is_the_environments_then_the_profiles(
    program: Run, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.will_answer(MODELS, LISTING)
    write_profile(Profile(gateway.url, KeyCredential("tk_former")))

    assert program("login", "--api-key-stdin", stdin=KEY).exit_code == 0
    assert saved() == Profile(gateway.url, KeyCredential(KEY))

    monkeypatch.setenv("TOLLKEEPER_URL", "http://127.0.0.1:1")
    assert program("login", "--api-key-stdin", stdin=KEY).exit_code == 1


@pytest.mark.parametrize(
    "line",
    [
        "login",
        "login --url ftp://h --api-key-stdin",
        "login --url http://u:p@h --api-key-stdin",
        "login --device --api-key-stdin",
        "login --name laptop --api-key-stdin",
        "login --no-wait --api-key-stdin",
        "login --wait 1m --api-key-stdin",
        "login --device --wait 1m --no-wait",
        "login --device --wait 8d",
        "login --device --wait soon",
        "login --device --name " + "x" * 101,
    ],
)
def test_wrong_usage_of_login_asks_nothing(
    program: Run, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("TOLLKEEPER_URL", gateway.url)

    result = program(*line.split(), stdin=KEY)

    assert result.exit_code == 2
    assert gateway.asked == []


def test_a_device_is_registered_and_waited_for_until_it_is_approved(
    program: Run, gateway: ScriptedGateway
) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    for _ in range(3):
        gateway.will_answer(ME, state("pending_approval"))
    gateway.will_answer(ME, state("approved", user="acme/alice", organization="acme", tier="paid"))

    result = program("login", "--url", gateway.url, "--device", "--name", "laptop", "-o", "json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "url": gateway.url,
        "credential": "device",
        "device_id": DEVICE_ID,
        "name": "laptop",
        "status": "approved",
        "user": "acme/alice",
        "organization": "acme",
        "tier": "paid",
        "suspended_until": None,
        "suspension_reason": None,
        "profile": str(profile_path()),
    }
    assert f"tollkeeper device approve {DEVICE_ID} --user" in result.stderr
    assert TOKEN not in result.output
    assert gateway.lines() == [REGISTER, *[ME] * 4]
    registration = gateway.asked[0]
    assert registration.body["deviceName"] == "laptop"
    assert registration.body["platform"]
    assert registration.body["version"]
    assert "x-session-token" not in registration.headers
    assert gateway.asked[1].headers["x-device-id"] == DEVICE_ID
    assert gateway.asked[1].headers["x-session-token"] == TOKEN
    assert saved() == Profile(gateway.url, DeviceCredential(DEVICE_ID, TOKEN))


def test_the_token_is_kept_before_anybody_has_decided(
    program: Run, gateway: ScriptedGateway
) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)

    result = program("login", "--url", gateway.url, "--device", "--no-wait", "-o", "json")

    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["status"], document["name"]) == ("pending_approval", socket.gethostname())
    assert f"tollkeeper device approve {DEVICE_ID}" in result.stderr
    assert gateway.lines() == [REGISTER]
    assert saved().credential == DeviceCredential(DEVICE_ID, TOKEN)


def test_a_wait_that_is_over_says_what_to_do(program: Run, gateway: ScriptedGateway) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    gateway.will_answer(ME, state("pending_approval"))

    result = program("login", "--url", gateway.url, "--device", "--wait", "50ms", "-o", "json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "pending_approval"
    assert "tollkeeper login --device` again" in result.stderr
    assert saved().credential == DeviceCredential(DEVICE_ID, TOKEN)


def test_a_device_that_still_waits_is_waited_for_again_and_not_registered_twice(
    program: Run, gateway: ScriptedGateway
) -> None:
    write_profile(Profile(gateway.url, DeviceCredential(DEVICE_ID, TOKEN)))
    details = {"deviceId": DEVICE_ID, "status": "pending_approval"}
    gateway.will_refuse(REGISTER, 409, "device_already_registered", details)
    gateway.will_answer(ME, state("pending_approval"))
    gateway.will_answer(ME, state("approved", user="acme/alice"))

    result = program("login", "--url", gateway.url, "--device")

    assert result.exit_code == 0, result.stderr
    assert f"the device {DEVICE_ID} already" in result.stderr
    assert f"tollkeeper device approve {DEVICE_ID}" in result.stderr
    assert gateway.asked[0].headers["x-session-token"] == TOKEN
    assert saved().credential == DeviceCredential(DEVICE_ID, TOKEN)


def test_a_saved_device_without_a_wait_is_looked_at_once(
    program: Run, gateway: ScriptedGateway
) -> None:
    write_profile(Profile(gateway.url, DeviceCredential(DEVICE_ID, TOKEN)))
    details = {"deviceId": DEVICE_ID, "status": "approved"}
    gateway.will_refuse(REGISTER, 409, "device_already_registered", details)
    gateway.will_answer(ME, state("approved", user="acme/alice"))

    result = program("login", "--url", gateway.url, "--device", "--no-wait")

    assert result.exit_code == 0
    assert "acme/alice" in result.stdout
    assert "device approve" not in result.output


def test_the_device_of_another_gateway_is_not_shown_to_this_one(
    program: Run, gateway: ScriptedGateway
) -> None:
    write_profile(Profile("https://other.example", DeviceCredential("otherotherot", "tks_other")))
    gateway.will_answer(REGISTER, REGISTERED, 201)

    assert program("login", "--url", gateway.url, "--device", "--no-wait").exit_code == 0

    assert "x-session-token" not in gateway.asked[0].headers
    assert saved().url == gateway.url


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (state("rejected"), "rejected"),
        (state("revoked"), "revoked"),
        (
            state("suspended", suspendedUntil="2026-12-01T00:00:00Z", suspensionReason="lost"),
            "suspended until 2026-12-01T00:00:00Z: lost",
        ),
        (state("hibernating"), "hibernating"),
    ],
)
def test_a_device_that_may_not_call_is_a_failure_with_a_reason(
    program: Run, gateway: ScriptedGateway, answer: dict[str, str], words: str
) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    gateway.will_answer(ME, answer)

    result = program("login", "--url", gateway.url, "--device", "-o", "json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == answer["status"]
    assert words in result.stderr


def test_a_wait_outlasts_a_data_plane_that_does_not_know_the_device_yet_and_one_that_is_busy(
    program: Run, gateway: ScriptedGateway
) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    gateway.will_refuse(ME, 401, "invalid_api_key")
    gateway.will_refuse(ME, 503, "configuration_unavailable", retry_after="0")
    gateway.will_answer(ME, state("approved", user="acme/alice"))

    result = program("login", "--url", gateway.url, "--device")

    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("asking again") == 1


def test_a_gateway_that_wants_to_be_asked_later_is(program: Run, gateway: ScriptedGateway) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    gateway.will_refuse(ME, 429, "rate_limit_exceeded", retry_after="1")
    gateway.will_answer(ME, state("approved"))

    began = time.monotonic()
    assert program("login", "--url", gateway.url, "--device").exit_code == 0

    assert time.monotonic() - began >= 1.0
    assert gateway.lines() == [REGISTER, ME, ME]


def test_a_refusal_that_no_wait_ends_is_not_waited_for(
    program: Run, gateway: ScriptedGateway
) -> None:
    gateway.will_answer(REGISTER, REGISTERED, 201)
    gateway.will_refuse(ME, 403, "ip_not_allowed")

    result = program("login", "--url", gateway.url, "--device")

    assert result.exit_code == 1
    assert "ip_not_allowed" in result.stderr
    assert gateway.lines() == [REGISTER, ME]


def test_a_refused_registration_says_when_to_come_again_and_keeps_the_profile(
    program: Run, gateway: ScriptedGateway
) -> None:
    former = Profile(gateway.url, KeyCredential("tk_former"))
    write_profile(former)
    details = {"layer": "pending_devices", "support_url": "https://help.example"}
    gateway.will_refuse(REGISTER, 429, "rate_limit_exceeded", details, retry_after="120")

    result = program("login", "--url", gateway.url, "--device")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "try again in 120 s" in result.stderr
    assert "support: https://help.example" in result.stderr
    assert saved() == former


def test_nothing_is_registered_when_the_token_could_not_be_kept(
    program: Run, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("a file where the folder would be")

    result = program("login", "--url", gateway.url, "--device")

    assert result.exit_code == 1
    assert str(tmp_path / "config") in result.stderr
    assert gateway.asked == []


def test_a_logout_removes_the_profile_and_names_the_device_that_stays(program: Run) -> None:
    path = write_profile(Profile("https://g.example", DeviceCredential(DEVICE_ID, TOKEN)))

    result = program("logout")

    assert (result.exit_code, result.stdout) == (0, "")
    assert f"tollkeeper device revoke {DEVICE_ID}" in result.stderr
    assert TOKEN not in result.output
    assert not path.exists()
    assert program("logout").exit_code == 0
