"""A `tollkeeper dev` under test: its process, what it prints, and what its programs log."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
# The developer's own settings, and keys for which `dev` would register a real provider.
_IS_OURS = re.compile(r"TOLLKEEPER_|((GOOGLE_)?GEMINI|OPENAI|ANTHROPIC)_(API_KEY|BASE_URL)$")
_Value = TypeVar("_Value")


def eventually(look: Callable[[], _Value], deadline_s: float = 15.0) -> _Value:
    """Return the first true value of `look`, or fail after `deadline_s` seconds."""
    ends_at = time.monotonic() + deadline_s
    while not (value := look()):
        assert time.monotonic() < ends_at, "the condition did not come true in time"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class RunningDev:
    """One start of `dev` in `folder`; several may share a folder, one after another or at once."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        environ: Mapping[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "tests.dev.driver"),
        name: str = "dev",
    ) -> None:
        self.data_dir = folder / "data"
        self.log = folder / f"{name}.log"
        self._stdout, self._stderr = folder / f"{name}.out", folder / f"{name}.err"
        clean = {key: value for key, value in os.environ.items() if not _IS_OURS.match(key)}
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--data-dir", str(self.data_dir), *options],
                cwd=ROOT,
                env={**clean, "STANDIN_LOG": str(self.log), **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8")

    def ready(self, deadline_s: float = 15.0) -> dict[str, Any]:
        """Wait for the JSON line and return it."""
        eventually(lambda: "\n" in self.stdout or self.process.poll() is not None, deadline_s)
        assert self.process.poll() is None, self.stderr
        value: dict[str, Any] = json.loads(self.stdout)
        return value

    def events(self) -> list[str]:
        """Return what was logged: verb and name, in order."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [" ".join(line.split()[:2]) for line in lines]

    def starts(self, name: str) -> list[dict[str, Any]]:
        """Return port, pid and settings of each start of a program."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        prefix = f"start {name} "
        return [json.loads(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)]

    def pids(self) -> list[int]:
        """Return every process of the stack that ever logged its start, and `dev` itself."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        started = [line.split(maxsplit=2)[2] for line in lines if line.startswith("start ")]
        return [self.process.pid, *(json.loads(text)["pid"] for text in started)]

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self, deadline_s: float = 20.0) -> int:
        return self.process.wait(deadline_s)

    def end(self) -> None:
        """Leave nothing behind, however the test ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        eventually(lambda: not any(map(is_alive, self.pids())), 10)
