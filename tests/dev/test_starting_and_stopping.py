import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dev.conftest import StartDev
from tests.dev.running import ROOT, eventually, is_alive

FIELDS = {
    *("base_url", "base_urls", "api_key", "admin_address", "admin_token", "console_url"),
    *("console_user", "console_password", "mock_url", "redis_url", "pids"),
}


def test_data_planes_start_last_after_the_configuration_is_seeded(start_dev: StartDev) -> None:
    dev = start_dev("--replicas", "2")

    dev.ready()

    events = dev.events()
    assert set(events[:3]) == {"start redis", "start mock", "start controlplane"}
    assert [event.split()[0] for event in events[3:6]] == ["connect", "seed", "mint"]
    assert set(events[6:]) == {"start dev-1", "start dev-2"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_data_planes_then_the_control_plane_then_mock_and_redis(
    start_dev: StartDev, number: signal.Signals
) -> None:
    dev = start_dev("--replicas", "2")
    dev.ready()

    dev.interrupt(number)

    assert dev.wait() == 0
    stops = [event for event in dev.events() if event.startswith("stop")]
    assert set(stops[:2]) == {"stop dev-1", "stop dev-2"}
    assert stops[2:] == ["stop controlplane", "stop mock", "stop redis"]
    assert not any(map(is_alive, dev.pids()))


def test_the_json_line_is_the_only_line_on_stdout_and_has_the_promised_fields(
    start_dev: StartDev,
) -> None:
    dev = start_dev("--replicas", "2")

    ready = dev.ready()

    assert dev.stdout.count("\n") == 1
    assert set(ready) == FIELDS
    assert ready["base_url"] == ready["base_urls"][0]
    assert len(ready["base_urls"]) == 2
    assert (ready["console_url"], ready["console_user"], ready["console_password"]) == (None,) * 3
    assert ready["pids"] == {
        "dev": dev.process.pid,
        "controlplane": dev.starts("controlplane")[0]["pid"],
        "dataplanes": [dev.starts("dev-1")[0]["pid"], dev.starts("dev-2")[0]["pid"]],
        "redis": dev.starts("redis")[0]["pid"],
        "mock": dev.starts("mock")[0]["pid"],
    }


def test_without_json_a_curl_and_the_settings_of_the_command_line_are_printed(
    start_dev: StartDev,
) -> None:
    dev = start_dev(json=False)

    eventually(lambda: "Ctrl-C stops everything" in dev.stdout)

    lines = [line.strip() for line in dev.stdout.splitlines()]
    curl = shlex.split(next(line for line in lines if line.startswith("curl")))
    port = dev.starts("dev-1")[0]["port"]
    admin_token = (dev.data_dir / "secrets" / "admin-token").read_text(encoding="utf-8")
    assert curl[:3] == ["curl", "-N", f"http://127.0.0.1:{port}/v1/chat/completions"]
    assert '"stream": true' in curl[-1]
    assert any(f"TOLLKEEPER_ADMIN_TOKEN={admin_token}" in line for line in lines)


def test_a_given_port_is_used_and_other_replicas_take_free_ones(start_dev: StartDev) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dev = start_dev("--port", str(port), "--replicas", "2")

    ready = dev.ready()

    assert ready["base_urls"][0] == f"http://127.0.0.1:{port}"
    assert ready["base_urls"][1] != ready["base_urls"][0]


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_taken_port_is_one_clear_line_and_nothing_is_started(
    start_dev: StartDev, option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        dev = start_dev(option, str(port))

        assert dev.wait() == 1

    assert dev.stderr == (
        f"tollkeeper dev: port {port} of 127.0.0.1 is taken; choose another with {option}\n"
    )
    assert dev.events() == []


@pytest.mark.parametrize("role", ["controlplane", "dataplane", "redis", "mock"])
def test_a_program_that_does_not_start_ends_the_whole_start(start_dev: StartDev, role: str) -> None:
    dev = start_dev(environ={"STANDIN_FAILS": role})

    assert dev.wait() == 1

    assert f"{role}: cannot start today" in dev.stderr
    assert "ended with status 1 before it was ready" in dev.stderr.splitlines()[-1]
    assert dev.stdout == ""
    assert not any(map(is_alive, dev.pids()))


@pytest.mark.parametrize("role", ["controlplane", "dataplane"])
def test_an_interrupt_while_a_program_is_still_starting_stops_everything(
    start_dev: StartDev, role: str
) -> None:
    dev = start_dev(environ={"STANDIN_SILENT": role})
    eventually(lambda: f"{'dev-1' if role == 'dataplane' else role} listens" in dev.stderr)

    dev.interrupt()

    assert dev.wait() == 0
    assert dev.stdout == ""
    assert not any(map(is_alive, dev.pids()))


def test_a_second_dev_on_the_same_directory_is_refused_with_one_line(start_dev: StartDev) -> None:
    first = start_dev()
    first.ready()

    second = start_dev()

    assert second.wait() == 1
    assert second.stderr.count("\n") == 1
    assert "another `tollkeeper dev` is using" in second.stderr
    assert all(map(is_alive, first.pids()))


def test_a_second_interrupt_kills_a_data_plane_that_does_not_end(start_dev: StartDev) -> None:
    dev = start_dev(environ={"STANDIN_HANGS": "dataplane"})
    dev.ready()

    dev.interrupt()
    eventually(lambda: "stopping" in dev.stderr)
    assert is_alive(dev.starts("dev-1")[0]["pid"])
    dev.interrupt()

    assert dev.wait() == 1
    assert not any(map(is_alive, dev.pids()))


def test_nothing_survives_a_kill_of_dev_and_it_can_start_again_at_once(start_dev: StartDev) -> None:
    first = start_dev("--replicas", "2", environ={"STANDIN_HANGS": "dataplane"})
    port = str(first.ready()["base_urls"][0].rpartition(":")[2])

    first.interrupt(signal.SIGKILL)
    second = start_dev("--port", port)

    eventually(lambda: not any(map(is_alive, first.pids()[1:])), 5)
    assert second.ready()["base_url"].endswith(f":{port}")


def test_where_the_kernel_has_no_bond_a_watcher_ends_the_program_with_its_parent(
    tmp_path: Path,
) -> None:
    launcher = ROOT / "controlplane" / "cli" / "dev_launcher.py"
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, subprocess, sys; sys.stdin.readline() if print(subprocess.Popen("
            "[sys.executable, sys.argv[1], 'watch', str(os.getpid()), 'sleep', '60'],"
            " start_new_session=True).pid, flush=True) is None else 0",
            str(launcher),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        program_pid = int(parent.stdout.readline())
        command_line = Path(f"/proc/{program_pid}/cmdline")
        eventually(lambda: command_line.read_bytes().startswith(b"sleep"))

        parent.kill()
        parent.wait(5)

        eventually(lambda: not is_alive(program_pid), 5)


def test_a_program_whose_parent_died_before_the_bond_does_not_start() -> None:
    launcher = ROOT / "controlplane" / "cli" / "dev_launcher.py"
    somebody_else = str(os.getppid())

    started = subprocess.run(
        [sys.executable, str(launcher), "deathsig", somebody_else, "echo", "alive"],
        capture_output=True,
        check=False,
        timeout=10,
    )

    assert (started.returncode, started.stdout) == (1, b"")
