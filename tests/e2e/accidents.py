"""What happens to the programs of a stack: killed, stopped, their data lost; `dev` starts them again."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from typing import Final

import httpx
import redis

from tests.e2e.counting import Counters
from tests.e2e.plain_http import NO_TLS
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

# Two seconds until the restart, and the start itself on a busy machine.
RESTART_S: Final = 40.0


def kill_dataplane(stack: Stack, number: int) -> int:
    """Kill a data plane with SIGKILL and return the process that it was."""
    process = stack.dataplane_pid(number)
    os.kill(process, signal.SIGKILL)
    return process


def await_dataplane(stack: Stack, number: int, former: int) -> None:
    """Wait until another process than `former` serves on its port, with a configuration."""

    def serves() -> bool:
        try:
            if stack.dataplane_pid(number) == former:
                return False
            url = f"{stack.base_urls[number]}/health/ready"
            return httpx.get(url, trust_env=False, verify=NO_TLS, timeout=5).status_code == 200
        except (FileNotFoundError, httpx.TransportError):
            return False

    eventually(serves, RESTART_S)


def empty_redis(stack: Stack) -> None:
    """Kill Redis and remove everything that it wrote; `dev` starts it again, empty."""
    process = redis_process(stack)
    os.kill(process, signal.SIGKILL)
    # Long before the restart: it follows after two seconds.
    shutil.rmtree(stack.data_dir / "redis" / "appendonlydir")

    def is_back() -> bool:
        try:
            return redis_process(stack) != process
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    eventually(is_back, RESTART_S)


@contextlib.contextmanager
def stopped_redis(stack: Stack) -> Iterator[None]:
    """Keep Redis stopped during the block: connections stay open, and nothing answers."""
    process = redis_process(stack)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def kill_controlplane(stack: Stack) -> int:
    """Kill the control plane with SIGKILL and return the process that it was."""
    process = stack.controlplane_pid()
    os.kill(process, signal.SIGKILL)
    return process


def await_controlplane(stack: Stack, former: int) -> None:
    """Wait until another process than `former` serves on its port."""

    def serves() -> bool:
        try:
            return stack.controlplane_pid() != former
        except FileNotFoundError:
            return False

    eventually(serves, RESTART_S)


def redis_process(stack: Stack) -> int:
    """Return the process of the server itself; it must be answering."""
    with Counters(stack) as counters:
        return int(counters.server()["process_id"])
