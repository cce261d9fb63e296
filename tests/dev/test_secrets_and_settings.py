import base64
import json
import re
import stat
from pathlib import Path

import pytest

from controlplane.cli.dev_environment import environment_of, unknown_settings
from tests.dev.conftest import StartDev

SECRETS = {"master-key", "join-token", "admin-token", "node-key-1", "node-key-2"}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_secret_is_made_once_and_readable_by_its_owner_alone(start_dev: StartDev) -> None:
    first = start_dev("--replicas", "2")
    first.ready()
    folder = first.data_dir / "secrets"
    made = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    first.interrupt()
    first.wait()

    second = start_dev("--replicas", "2")
    second.ready()

    assert set(made) == SECRETS
    assert len(set(made.values())) == len(SECRETS)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == made
    assert {mode_of(path) for path in folder.iterdir()} == {0o600}
    assert mode_of(first.data_dir) == mode_of(folder) == 0o700
    assert mode_of(first.data_dir / "credentials.json") == 0o600
    assert re.fullmatch(r"tka_[0-9A-Za-z]{43}", made["admin-token"])
    assert len(made["join-token"]) >= 32
    assert len(base64.b64decode(made["master-key"], validate=True)) == 32


def test_no_secret_stands_on_an_argument_vector_or_in_the_logs(start_dev: StartDev) -> None:
    dev = start_dev("--replicas", "2")
    ready = dev.ready()
    command_lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in dev.pids()]

    dev.interrupt()
    dev.wait()

    secrets = [path.read_text(encoding="utf-8") for path in (dev.data_dir / "secrets").iterdir()]
    secrets += [ready["api_key"], ready["redis_url"], "a-redis-password"]
    assert "redis listens" in dev.stderr
    assert "redis says more" in dev.stderr
    for text in (*command_lines, dev.stderr):
        assert not [secret for secret in secrets if secret in text]


def test_credentials_are_kept_in_the_form_of_the_json_line(start_dev: StartDev) -> None:
    dev = start_dev()

    ready = dev.ready()

    kept = json.loads((dev.data_dir / "credentials.json").read_text(encoding="utf-8"))
    assert kept == ready


def test_each_program_gets_its_own_settings_and_no_others(start_dev: StartDev) -> None:
    of_callers = {
        "TOLLKEEPER_CLIENT_IP_HEADER": "x-real-ip",
        "TOLLKEEPER_CORS_ORIGINS": "tauri://localhost",
        "TOLLKEEPER_TRUSTED_PROXIES": "10.0.0.0/8",
    }
    given = {"TOLLKEEPER_DAILY_BUDGET_USD": "7", **of_callers}
    mine = {"TOLLKEEPER_ADMIN_TOKEN": "of another stack", "TOLLKEEPER_LOG_LEVEL": "warning"}
    dev = start_dev(environ={**given, **mine, "TOLLKEEPER_PRIVATE_UPSTREAMS": "192.168.0.0/16"})
    ready = dev.ready()

    controlplane = dev.starts("controlplane")[0]["settings"]
    secrets = dev.data_dir / "secrets"
    assert controlplane == {
        "TOLLKEEPER_ADMIN_PORT": "0",
        "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN_FILE": str(secrets / "admin-token"),
        "TOLLKEEPER_DAILY_BUDGET_USD": "7",
        "TOLLKEEPER_DATA_DIR": str(dev.data_dir / "controlplane"),
        "TOLLKEEPER_JOIN_TOKEN_FILE": str(secrets / "join-token"),
        "TOLLKEEPER_LOG_LEVEL": "warning",
        "TOLLKEEPER_MASTER_KEY_FILE": str(secrets / "master-key"),
        "TOLLKEEPER_MAX_REPLICAS": "1",
    }
    dataplane = dev.starts("dev-1")[0]["settings"]
    assert dataplane == {
        "TOLLKEEPER_CONTROL_PLANE": ready["admin_address"],
        "TOLLKEEPER_DATA_DIR": str(dev.data_dir / "dataplane-1"),
        "TOLLKEEPER_JOIN_TOKEN_FILE": str(secrets / "join-token"),
        "TOLLKEEPER_LOG_LEVEL": "warning",
        "TOLLKEEPER_NODE_ID": "dev-1",
        "TOLLKEEPER_NODE_KEY_FILE": str(secrets / "node-key-1"),
        "TOLLKEEPER_PORT": "0",
        "TOLLKEEPER_PRIVATE_UPSTREAMS": "127.0.0.0/8,::1/128,192.168.0.0/16",
        "TOLLKEEPER_REDIS_URL": ready["redis_url"],
        **of_callers,
    }


def test_a_redis_that_the_user_brings_is_used_and_none_is_started(start_dev: StartDev) -> None:
    url = "redis://127.0.0.1:6379/3"
    dev = start_dev(environ={"TOLLKEEPER_REDIS_URL": url})

    ready = dev.ready()

    assert (ready["redis_url"], ready["pids"]["redis"]) == (url, None)
    assert dev.starts("dev-1")[0]["settings"]["TOLLKEEPER_REDIS_URL"] == url
    assert dev.starts("redis") == []


def test_a_setting_that_no_program_knows_stops_the_start(start_dev: StartDev) -> None:
    dev = start_dev(environ={"TOLLKEEPER_DIALY_BUDGET_USD": "7"})

    assert dev.wait() == 2
    assert dev.stderr == "tollkeeper dev: unknown setting: TOLLKEEPER_DIALY_BUDGET_USD\n"


def test_only_names_with_our_prefix_can_be_unknown() -> None:
    known = ["HOME", "TOLLKEEPER_REDIS_URL_FILE", "TOLLKEEPER_FIXTURES", "TOLLKEEPER_TEST_ANY"]

    assert unknown_settings([*known, "TOLLKEEPER_NONSENSE"]) == ["TOLLKEEPER_NONSENSE"]


@pytest.mark.parametrize("name", ["TOLLKEEPER_HOST", "TOLLKEEPER_HOST_FILE"])
def test_what_dev_decides_replaces_what_the_user_set_in_either_form(name: str) -> None:
    environment = environment_of(
        {name: "theirs", "HOME": "/"}, frozenset({"HOST"}), {"HOST": "ours"}
    )

    assert environment == {"HOME": "/", "TOLLKEEPER_HOST": "ours"}
