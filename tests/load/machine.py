"""What the kernel knows about processes and cores, and where processes may run (Linux)."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, user and system, in seconds.

    Raises:
        FileNotFoundError, ProcessLookupError: There is no such process.
    """
    return cpu_seconds_in(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"))


def cpu_seconds_in(stat: str) -> float:
    """Return the CPU time in a process's `stat` line; its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process.

    Raises:
        FileNotFoundError, ProcessLookupError: There is no such process.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * _KIB
    raise ProcessLookupError(pid)


def core_busy_seconds(core: int) -> float:
    """Return for how long a core has been at work for processes, or was taken by the host.

    Interrupts are left out: on the loopback they are work of whoever sends.
    """
    return core_busy_seconds_in(Path("/proc/stat").read_text(encoding="utf-8"), core)


def core_busy_seconds_in(stat: str, core: int) -> float:
    """Return the busy time of `core` in the text of `/proc/stat`.

    Raises:
        LookupError: There is no such core.
    """
    for line in stat.splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, *_ = map(int, ticks)
            steal = int(ticks[7]) if len(ticks) > 7 else 0
            return (user + nice + system + steal) / _TICKS_PER_S
    raise LookupError(f"no core {core}")


def usable_cores() -> list[int]:
    """Return the cores that this process may use, lowest first."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process, and what it starts later, on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def cpu_model() -> str:
    """Return the model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit(root: Path) -> str:
    """Return the short commit of the tree at `root`, with `+` when the tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    short = git("rev-parse", "--short", "HEAD")
    if not short:
        return "unknown"
    return f"{short}+" if git("status", "--porcelain") else short
