"""A `tollkeeper dev` under test, driven by its one line of JSON and by the command line alone."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.e2e.commands import clean_environment, invoke
from tests.e2e.waiting import eventually

PROGRAM: Final = Path(sys.executable).with_name("tollkeeper")
# A cold start of six interpreters on two busy cores; `dev` promises 10 s on a warm machine.
START_DEADLINE_S: Final = 60.0
# A data plane gives open streams 30 s.
STOP_DEADLINE_S: Final = 45.0
CALL_DEADLINE_S: Final = 40.0
# What `dev` promises about its children after its own kill -9.
GONE_DEADLINE_S: Final = 5.0
# Inherited by every process of a stack, and by nothing else.
_MARK: Final = "E2E_STACK"


class RefusedError(Exception):
    """A command of `tollkeeper` ended with another exit code than 0; the text is its stderr."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that may stand in certain files only; `name` says in a failure what leaked."""

    name: str
    text: str


class Stack:
    """One data directory with a `dev` running on it.

    Attributes:
        line: What `dev --json` printed.
        line_text: The same as it was printed.
        folder: Everything that the stack writes is below it; `data` is the data directory.
        secrets: What must not be found in its files; commands add what they create.
    """

    def __init__(
        self, folder: Path, *, replicas: int = 2, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start `dev` and wait for its line.

        Raises:
            AssertionError: It ended first or said nothing in time; its log is shown.
        """
        self.folder = folder
        self.data_dir = folder / "data"
        self.log = folder / "dev.log"
        self.secrets: list[Secret] = []
        self.has_organization = False
        self._mark = secrets.token_hex(8)
        self._redis_at = b""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(PROGRAM, "dev", "--json", "--replicas", str(replicas)),
                    *("--port", "0", "--admin-port", "0", "--console-port", "0"),
                    *("--data-dir", str(self.data_dir)),
                ],
                cwd=folder,
                env=clean_environment({**(environ or {}), _MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C is for the tests, which then stop the stack.
                start_new_session=True,
            )
        try:
            self.line_text = self._first_line()
            self.line: dict[str, Any] = json.loads(self.line_text)
        except BaseException:
            self.kill()
            raise
        redis = urlsplit(self.line["redis_url"])
        self._redis_at = f"{redis.hostname}:{redis.port}".encode()
        self.secrets += [
            Secret("the administrator's token", self.line["admin_token"]),
            Secret("the first API key", self.line["api_key"]),
            Secret("the password of Redis", redis.password or ""),
            Secret("the join token", self._kept("join-token")),
            Secret("the master key", self._kept("master-key")),
        ]

    @property
    def base_urls(self) -> list[str]:
        """Where the data planes are; a restarted one keeps its port."""
        return list(self.line["base_urls"])

    @property
    def mock_url(self) -> str:
        """Where the mock provider is."""
        return str(self.line["mock_url"])

    @property
    def settings(self) -> dict[str, str]:
        """What makes a command that of this stack's administrator and first client."""
        return {
            "TOLLKEEPER_ADMIN_ADDRESS": str(self.line["admin_address"]),
            "TOLLKEEPER_ADMIN_TOKEN": str(self.line["admin_token"]),
            "TOLLKEEPER_URL": str(self.line["base_url"]),
            "TOLLKEEPER_API_KEY": str(self.line["api_key"]),
        }

    def run(
        self, *arguments: str, stdin: str = "", environ: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run the program `tollkeeper` as this stack's administrator and first client."""
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=clean_environment({**self.settings, **(environ or {})}),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=CALL_DEADLINE_S,
        )

    def tollkeeper(self, *arguments: str, stdin: str = "") -> Any:  # whatever JSON it prints
        """Run a command of `tollkeeper` with `-o json`, in this process, and return what it printed.

        Raises:
            RefusedError: It failed.
        """
        if "--secret-stdin" in arguments:
            self.secrets.append(Secret(f"the secret of {arguments[2]}", stdin))
        done = invoke((*arguments, "-o", "json"), self.settings, stdin)
        if done.exit_code:
            raise RefusedError(done.stderr)
        value = json.loads(done.stdout)
        if isinstance(value, dict) and "api_key" in value:
            self.secrets.append(Secret(f"the API key {arguments[2]}", value["api_key"]))
        return value

    def dataplane_pid(self, number: int) -> int:
        """Return the process of a data plane, counted from 0; it must be serving."""
        ready = self.data_dir / f"dataplane-{number + 1}" / "dataplane.ready"
        pid: int = json.loads(ready.read_text(encoding="utf-8"))["pid"]
        return pid

    def controlplane_pid(self) -> int:
        """Return the process of the control plane; it must be serving."""
        ready = self.data_dir / "controlplane" / "controlplane.ready"
        pid: int = json.loads(ready.read_text(encoding="utf-8"))["pid"]
        return pid

    def processes(self) -> list[str]:
        """Return pid and command of everything that runs for this stack, `dev` included."""
        mark = f"{_MARK}={self._mark}".encode()
        found: list[str] = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                # Both are empty for a process that only waits to be reaped.
                environ = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip()
            except OSError:
                continue  # gone meanwhile
            # Redis writes its title where its environment was.
            if mark in environ or (self._redis_at and self._redis_at in command):
                found.append(f"{folder.name} {command.decode(errors='replace')}")
        return found

    def stop(self) -> None:
        """Stop it as Ctrl-C does.

        Raises:
            AssertionError: It did not end in order, or something of it is left.
        """
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                assert self.process.wait(STOP_DEADLINE_S) == 0, self.log_tail()
            assert not self.processes()
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill `dev`, and then what it left, so that no test leaves anything behind."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        try:
            eventually(lambda: not self.processes(), GONE_DEADLINE_S)
        except AssertionError:
            for process in self.processes():
                os.kill(int(process.split()[0]), signal.SIGKILL)
            raise

    def log_tail(self) -> str:
        """Return the last lines of what the programs logged."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-30:])

    def _kept(self, name: str) -> str:
        return (self.data_dir / "secrets" / name).read_text(encoding="utf-8").strip()

    def _first_line(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        ends_at = time.monotonic() + START_DEADLINE_S
        text = b""
        while not text.endswith(b"\n"):
            left_s = max(0.0, ends_at - time.monotonic())
            assert select.select([stdout], [], [], left_s)[0], self.log_tail()
            part = os.read(stdout.fileno(), 65_536)
            assert part, self.log_tail()
            text += part
        return text.decode()
