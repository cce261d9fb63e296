import os
import signal
from typing import Any

import pytest

from controlplane.cli.processes import restart_delay_s
from tests.dev.conftest import StartDev
from tests.dev.running import eventually, is_alive

NAMES = ("controlplane", "dev-1", "redis", "mock")


def test_programs_that_die_are_reported_and_come_back_on_their_ports(start_dev: StartDev) -> None:
    dev = start_dev("--replicas", "2")
    dev.ready()

    for name in NAMES:
        os.kill(dev.starts(name)[0]["pid"], signal.SIGKILL)
    eventually(lambda: all(len(dev.starts(name)) == 2 for name in NAMES))

    for name in NAMES:
        first, second = dev.starts(name)
        assert first["port"] == second["port"]
        assert {**first["settings"], **port_of(first)} == {**second["settings"], **port_of(first)}
        assert (
            f"(pid {first['pid']}) was killed by SIGKILL; it is started again in 2 s" in dev.stderr
        )
    assert len(dev.starts("dev-2")) == 1
    assert dev.process.poll() is None


def port_of(start: dict[str, Any]) -> dict[str, str]:
    """Return the settings that a restart changes: a free port has become this one."""
    port = str(start["port"])
    return {"TOLLKEEPER_PORT": port, "TOLLKEEPER_ADMIN_PORT": port}


def test_without_restarts_a_dead_program_stays_dead_and_the_rest_goes_on(
    start_dev: StartDev,
) -> None:
    dev = start_dev("--no-restart")
    dev.ready()

    os.kill(dev.starts("mock")[0]["pid"], signal.SIGKILL)
    eventually(lambda: "it is not started again" in dev.stderr)

    alive = [name for name in NAMES if is_alive(dev.starts(name)[-1]["pid"])]
    assert alive == ["controlplane", "dev-1", "redis"]
    dev.interrupt()
    assert dev.wait() == 0
    assert len(dev.starts("mock")) == 1


def test_an_interrupt_does_not_wait_for_a_restart(start_dev: StartDev) -> None:
    dev = start_dev()
    dev.ready()

    os.kill(dev.starts("mock")[0]["pid"], signal.SIGKILL)
    eventually(lambda: "it is started again" in dev.stderr)
    dev.interrupt()

    assert dev.wait() == 0
    assert len(dev.starts("mock")) == 1


@pytest.mark.parametrize(
    ("previous_s", "has_served", "delay_s"),
    [
        (None, True, 2.0),
        (2.0, True, 2.0),
        (2.0, False, 4.0),
        (4.0, False, 8.0),
        (16.0, False, 30.0),
        (30.0, False, 30.0),
        (30.0, True, 2.0),
    ],
)
def test_only_a_program_that_cannot_start_waits_longer_each_time(
    previous_s: float | None, has_served: bool, delay_s: float
) -> None:
    assert restart_delay_s(previous_s, has_served=has_served) == delay_s
