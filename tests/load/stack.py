"""The programs under load: one `tollkeeper dev` on free ports, with settings out of reach."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

ROOT: Final = Path(__file__).parents[2]
# Layers that nobody asked for in a benchmark.
SETTINGS: Final = {
    "TOLLKEEPER_DAILY_BUDGET_USD": "1000000",
    "TOLLKEEPER_DAILY_REQUESTS": "100000000",
}
_LAUNCHER: Final = ROOT / "controlplane" / "cli" / "dev_launcher.py"
_START_DEADLINE_S: Final = 90.0
_STOP_DEADLINE_S: Final = 45.0
_CALL_DEADLINE_S: Final = 30.0
_READY_DEADLINE_S: Final = 30.0
_READY_POLL_S: Final = 0.1
_POLL_DEADLINE_S: Final = 5.0
_SHOWN_LINES: Final = 20
# `dev` would register a real provider for each of these.
_PROVIDER_KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")


class BenchError(Exception):
    """The benchmark cannot go on, or what it measured was wrong; the text is for its user."""


class Pids(msgspec.Struct, frozen=True):
    """The processes of the stack."""

    dev: int
    controlplane: int
    dataplanes: tuple[int, ...]
    redis: int
    mock: int


class Addresses(msgspec.Struct, frozen=True):
    """What `dev --json` says on its one line, as far as it is used here."""

    base_url: str
    mock_url: str
    redis_url: str
    admin_address: str
    admin_token: str
    pids: Pids


class Stack:
    """A data directory of its own, and the `dev` that may run on it; close it, or use it as a context."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tollkeeper-bench-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self._folder / "dev.log"
        self.addresses: Addresses | None = None

    def start(self) -> float:
        """Start `dev` and wait for its line; return after how many seconds it came.

        Raises:
            BenchError: It ended, or said nothing in 90 s.
        """
        began_at = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    # So that it dies with the benchmark, and its own programs with it.
                    *(sys.executable, "-I", "-S", str(_LAUNCHER), "deathsig", str(os.getpid())),
                    *(_program(), "dev", "--json", "--no-restart"),
                    *("--port", "0", "--admin-port", "0", "--console-port", "0"),
                    *("--data-dir", str(self._folder / "data")),
                ],
                cwd=self._folder,
                env=_environment(SETTINGS),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C is for the benchmark, which then stops the stack once.
                start_new_session=True,
            )
        line = self._line(self._process, began_at + _START_DEADLINE_S)
        took_s = time.perf_counter() - began_at
        self.addresses = msgspec.json.decode(line, type=Addresses)
        return took_s

    def wait_ready(self) -> None:
        """Wait until the data plane has a configuration and its counters can be asked.

        `dev` does so too; but what was configured since, or other work on the machine, may have
        made the data plane unready again.

        Raises:
            BenchError: It is not ready within 30 s.
        """
        if self.addresses is None:
            raise BenchError("the stack does not run")
        url = f"{self.addresses.base_url}/health/ready"
        ends_at = time.monotonic() + _READY_DEADLINE_S
        while time.monotonic() < ends_at:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, trust_env=False, timeout=_POLL_DEADLINE_S).is_success:
                    return
            time.sleep(_READY_POLL_S)
        raise BenchError(f"the data plane was not ready in {_READY_DEADLINE_S:.0f} s")

    def tollkeeper(self, *arguments: str) -> Any:  # whatever JSON the command prints
        """Run an admin command with `-o json`; return what it printed.

        Raises:
            BenchError: It failed.
        """
        if self.addresses is None:
            raise BenchError("the stack does not run")
        settings = {
            "TOLLKEEPER_ADMIN_ADDRESS": self.addresses.admin_address,
            "TOLLKEEPER_ADMIN_TOKEN": self.addresses.admin_token,
        }
        done = subprocess.run(
            [_program(), *arguments, "-o", "json"],
            cwd=self._folder,
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_CALL_DEADLINE_S,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise BenchError(f"`tollkeeper {' '.join(arguments[:2])}` failed: {said}")
        return json.loads(done.stdout)

    def stop(self) -> None:
        """Stop `dev` in order; kill it, and with it all of its programs, if it does not end."""
        process, self._process, self.addresses = self._process, None, None
        if process is None:
            return
        try:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            sys.stderr.write("the stack did not stop in time; it is killed\n")
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def close(self) -> None:
        """Stop what runs and remove its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def log_tail(self) -> str:
        """Return the last lines that the programs logged; they hold no secrets."""
        if not self._log.exists():
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_SHOWN_LINES:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self, process: "subprocess.Popen[bytes]", ends_at: float) -> bytes:
        if process.stdout is None:
            raise BenchError("`tollkeeper dev` has no output")
        line = b""
        while not line.endswith(b"\n"):
            left_s = ends_at - time.perf_counter()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                raise BenchError(f"`tollkeeper dev` was not ready in {_START_DEADLINE_S:.0f} s")
            part = os.read(process.stdout.fileno(), 65_536)
            if not part:
                raise BenchError("`tollkeeper dev` ended before it was ready")
            line += part
        return line


def _program() -> str:
    program = Path(sys.executable).with_name("tollkeeper")
    if not program.exists():
        raise BenchError("there is no program `tollkeeper` beside this Python: install the project")
    return str(program)


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this environment with no other settings of ours than `settings`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TOLLKEEPER_") and name not in _PROVIDER_KEYS
    }
    return {**kept, **settings}
