"""The server that `dev` and the tests start: private, alone in its directory, never orphaned."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dataplane import embedded_redis
from dataplane.embedded_redis import EmbeddedRedisError, RunningRedis

PATIENCE_SECONDS = 10.0


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.005)


def run_program(data_dir: Path) -> tuple["subprocess.Popen[str]", dict[str, object]]:
    command = [sys.executable, "-m", "dataplane.embedded_redis", "--data-dir", str(data_dir)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    return program, json.loads(program.stdout.readline())


def test_the_shared_settings_are_those_of_the_deployed_file() -> None:
    lines = embedded_redis.CONFIGURATION.read_text(encoding="utf-8").splitlines()
    settings = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]

    assert [tuple(each) for each in settings] == list(embedded_redis.SETTINGS)


def test_a_server_never_evicts_and_keeps_its_writes(redis_server: RunningRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        settings = client.config_get("*")

    assert isinstance(settings, dict)
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
    assert settings["save"] == ""
    assert settings["bind"] == "127.0.0.1"


def test_an_installation_without_the_file_runs_with_the_same_settings(
    tmp_path: Path, redis_server: RunningRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "CONFIGURATION", tmp_path / "missing")
    server = embedded_redis.start(tmp_path / "data")
    with redis.Redis.from_url(server.url) as bare, redis.Redis.from_url(redis_server.url) as full:
        names = [name for name, _ in embedded_redis.SETTINGS]
        assert bare.config_get(*names) == full.config_get(*names)
    server.stop()


def test_nobody_enters_without_the_password_and_only_the_owner_can_read_it(
    tmp_path: Path,
) -> None:
    server = embedded_redis.start(tmp_path / "data")
    try:
        stranger = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()
        password = server.url.removeprefix("redis://:").partition("@")[0]
        assert len(password) >= 32
        assert password not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
        mode = stat.S_IMODE((tmp_path / "data" / "embedded.conf").stat().st_mode)
        assert mode == 0o600
    finally:
        server.stop()


def test_two_servers_cannot_share_a_directory(tmp_path: Path) -> None:
    server = embedded_redis.start(tmp_path)
    try:
        with pytest.raises(EmbeddedRedisError, match="another server uses"):
            embedded_redis.start(tmp_path)
    finally:
        server.stop()

    embedded_redis.start(tmp_path).stop()


def test_a_port_that_is_taken_is_named_in_the_error(
    tmp_path: Path, redis_server: RunningRedis
) -> None:
    with pytest.raises(EmbeddedRedisError, match=f"listening on port {redis_server.port}"):
        embedded_redis.start(tmp_path, port=redis_server.port)


def test_a_free_port_that_is_lost_to_another_is_replaced(
    tmp_path: Path, redis_server: RunningRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = embedded_redis._free_port
    ports = iter([redis_server.port, free_port()])
    monkeypatch.setattr(embedded_redis, "_free_port", lambda: next(ports))

    server = embedded_redis.start(tmp_path)

    assert "redis://" not in repr(server)
    assert server.port != redis_server.port
    server.stop()


def test_the_program_says_where_it_listens_and_ends_with_its_server(tmp_path: Path) -> None:
    program, ready = run_program(tmp_path)
    with redis.Redis.from_url(str(ready["url"])) as client:
        assert client.ping()
        info = client.info("server")
        assert isinstance(info, dict)
        assert (info["process_id"], info["tcp_port"]) == (ready["pid"], ready["port"])

    program.terminate()

    assert program.wait(PATIENCE_SECONDS) == 0
    assert not is_alive(int(str(ready["pid"])))
    assert program.stdout is not None
    program.stdout.close()


def test_a_server_dies_with_the_program_that_started_it_even_at_kill_9(tmp_path: Path) -> None:
    program, ready = run_program(tmp_path)

    os.kill(program.pid, signal.SIGKILL)

    program.wait(PATIENCE_SECONDS)
    wait_until_gone(int(str(ready["pid"])))
    assert program.stdout is not None
    program.stdout.close()


def test_state_is_there_after_a_stop_and_a_start(tmp_path: Path) -> None:
    first = embedded_redis.start(tmp_path)
    with redis.Redis.from_url(first.url) as client:
        client.set("kept", "yes")
    first.stop()

    second = embedded_redis.start(tmp_path)
    with redis.Redis.from_url(second.url) as client:
        assert client.get("kept") == b"yes"
    second.stop()
    assert first.url != second.url


def test_a_missing_server_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(EmbeddedRedisError, match="no Redis server found"):
        embedded_redis.server_binary()
