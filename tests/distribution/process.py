"""`python -m controlplane` as a process of its own."""

import asyncio
import base64
import json
import os
import secrets
import signal
import string
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.distribution.node import eventually

START_DEADLINE_S = 15.0
STOP_DEADLINE_S = 6.0


def owner_token() -> str:
    return "tka_" + "".join(secrets.choice(string.ascii_letters) for _ in range(43))


def environment_of(data_dir: Path) -> dict[str, str]:
    """Return the least that a control plane needs, with secrets of its own."""
    return {
        "TOLLKEEPER_DATA_DIR": str(data_dir),
        "TOLLKEEPER_ADMIN_PORT": "0",
        "TOLLKEEPER_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN": owner_token(),
        "TOLLKEEPER_JOIN_TOKEN": secrets.token_hex(24),
    }


@dataclass
class Program:
    """A running control plane."""

    process: asyncio.subprocess.Process
    environment: Mapping[str, str]
    address: str
    errors: "asyncio.Task[bytes]"
    """What stood on stderr, once it ended. It is read all the time: a full pipe would stop the program."""

    @property
    def join_token(self) -> str:
        return self.environment["TOLLKEEPER_JOIN_TOKEN"]

    @property
    def owner_token(self) -> str:
        return self.environment["TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN"]

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal, wait for the end and return what stood on stderr."""
        self.process.send_signal(number)
        await asyncio.wait_for(self.process.wait(), STOP_DEADLINE_S)
        return (await asyncio.wait_for(self.errors, STOP_DEADLINE_S)).decode()


async def launch(environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start the program with this environment and nothing else of ours."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "controlplane",
        env={**inherited, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def program(
    environment: Mapping[str, str], start_s: float = START_DEADLINE_S
) -> AsyncIterator[Program]:
    """Run the program until the block ends; ready when the block begins."""
    ready = Path(environment["TOLLKEEPER_DATA_DIR"]) / "controlplane.ready"
    ready.unlink(missing_ok=True)
    process = await launch(environment)
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        await eventually(lambda: ready.exists() or process.returncode is not None, start_s)
        if process.returncode is not None:
            raise AssertionError((await errors).decode())
        found = json.loads(ready.read_text("utf-8"))
        assert found["pid"] == process.pid
        yield Program(process, environment, found["admin_address"], errors)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await errors
