"""Child processes that announce where they serve, die with their parent and keep their port.

The first announcement of a child fixes its port; each later start asks for the same one.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from controlplane.cli.dev_announcements import Announcement, announced_in, read_announcement

_LAUNCHER: Final = Path(__file__).with_name("dev_launcher.py")
_BOND: Final = "deathsig" if sys.platform == "linux" else "watch"
_STDERR_FILENO: Final = 2
# A cold start on a busy machine takes a few seconds; a minute means that it hangs.
START_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.02
_FIRST_DELAY_S: Final = 2.0
_LONGEST_DELAY_S: Final = 30.0
# SIGKILL cannot be refused: what is not gone by then hangs in the kernel, and waiting does not help.
_KILL_DEADLINE_S: Final = 5.0

Report = Callable[[str], None]


class StartError(Exception):
    """A program could not be started; the text is one line for the user and holds no secret."""


@dataclass(frozen=True, slots=True)
class Program:
    """How a program is started and how it says that it serves.

    Secrets belong into `environment`, never into `argv`: every user of the machine may read argument vectors.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    # An option (`--port`), or the name of a setting; either takes the port, 0 for a free one.
    port_setting: str
    port: int = 0
    # None: it announces itself by a line on its standard output.
    ready_file: Path | None = None

    def at(self, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the argument vector and the environment that make it serve on `port`."""
        if self.port_setting.startswith("-"):
            return (*self.argv, self.port_setting, str(port)), dict(self.environment)
        return self.argv, {**self.environment, self.port_setting: str(port)}


def restart_delay_s(previous_s: float | None, *, has_served: bool) -> float:
    """Return how long to wait before a restart, in seconds.

    Two, as promised, for a program that had served; twice as long each time, up to 30, for one that cannot even start.
    """
    if previous_s is None or has_served:
        return _FIRST_DELAY_S
    return min(previous_s * 2, _LONGEST_DELAY_S)


class Child:
    """One program, over as many processes as it takes to keep it running.

    All processes are forked by the thread that runs the event loop, which must be the main thread: on Linux a child
    dies with the thread that forked it.
    """

    def __init__(self, program: Program, report: Report) -> None:
        self.program = program
        self.announcement: Announcement | None = None
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.program.name

    @property
    def address(self) -> str:
        """Where it serves; it must have been started."""
        return self._announced().address

    @property
    def port(self) -> int:
        """The port that it keeps; it must have been started."""
        return self._announced().port

    @property
    def pid(self) -> int:
        """The process that serves; it must have been started."""
        return self._announced().pid

    @property
    def is_given_up(self) -> bool:
        """Whether it ended and nobody will start it again."""
        return self._keeper is not None and self._keeper.done()

    async def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Start a process and wait until it announces itself.

        Raises:
            StartError: It ended first, or said nothing within `deadline_s` seconds; then it is killed.
        """
        port = self.announcement.port if self.announcement else self.program.port
        process = self._process = await self._spawn(port)
        announced = asyncio.create_task(self._await_announcement(process))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait(
                {announced, ended}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if announced.done() and (announcement := announced.result()) is not None:
                self.announcement = announcement
                return
        finally:
            announced.cancel()
            ended.cancel()
        if process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _POLL_S)
        if process.returncode is None:
            await self._kill()
            raise StartError(f"{self.name} was not ready after {deadline_s:.0f} s")
        _end_group(process.pid)
        raise StartError(
            f"{self.name} {_ending(process.returncode)} before it was ready; its reason stands above"
        )

    def keep(self, *, restarts: bool) -> None:
        """Watch it from now on: report its end and, if `restarts`, start it again on its port."""
        self._keeper = asyncio.create_task(self._keep(restarts=restarts))

    async def stop(self, patience_s: float, kill: asyncio.Event) -> None:
        """End it for good: ask, wait up to `patience_s` seconds or until `kill` is set, then kill its process group."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await self._wait_for_end(process, patience_s, kill)
        await self._kill()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait({self._pump})

    def _announced(self) -> Announcement:
        if self.announcement is None:
            raise StartError(f"{self.name} has not been started")
        return self.announcement

    async def _spawn(self, port: int) -> asyncio.subprocess.Process:
        """Fork a process in a session of its own, bound to this one."""
        argv, environment = self.program.at(port)
        if self.program.ready_file is not None:
            self.program.ready_file.unlink(missing_ok=True)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_LAUNCHER), _BOND, str(os.getpid()), *argv),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=_STDERR_FILENO if self.program.ready_file else asyncio.subprocess.PIPE,
            # A session, not only a group: neither the terminal's Ctrl-C nor its end reaches it.
            start_new_session=True,
        )

    async def _await_announcement(self, process: asyncio.subprocess.Process) -> Announcement | None:
        """Return the announcement of this very process, or None when it can never come."""
        if self.program.ready_file is not None:
            return await announced_in(self.program.ready_file, process.pid)
        stdout = process.stdout
        if stdout is None:  # A pipe was asked for; this is for the type checker.
            return None
        while line := await stdout.readline():
            announcement = read_announcement(line, process.pid)
            if announcement is not None:
                self._pump = asyncio.create_task(_to_stderr(stdout))
                return announcement
            _write_stderr(line)
        return None

    async def _keep(self, *, restarts: bool) -> None:
        delay_s: float | None = None
        has_served = True
        while self._process is not None:
            code = await self._process.wait()
            _end_group(self._process.pid)
            ending = f"{self.name} (pid {self.pid}) {_ending(code)}"
            if not restarts:
                self._report(f"{ending}; it is not started again")
                return
            delay_s = restart_delay_s(delay_s, has_served=has_served)
            self._report(f"{ending}; it is started again in {delay_s:.0f} s")
            await asyncio.sleep(delay_s)
            try:
                await self.start()
            except StartError as error:
                has_served = False
                self._report(str(error))
            else:
                has_served = True
                self._report(f"{self.name} is back (pid {self.pid})")

    async def _wait_for_end(
        self, process: asyncio.subprocess.Process, patience_s: float, kill: asyncio.Event
    ) -> None:
        tasks = {asyncio.create_task(process.wait()), asyncio.create_task(kill.wait())}
        await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        if process.returncode is None and not kill.is_set():
            self._report(f"{self.name} did not end within {patience_s:.0f} s and is killed")

    async def _kill(self) -> None:
        """Kill what is left of the process group and take its leader's exit status."""
        process = self._process
        if process is None:
            return
        _end_group(process.pid)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _KILL_DEADLINE_S)


async def _to_stderr(stream: asyncio.StreamReader) -> None:
    """Pass on what a child prints, until it closes its output."""
    while chunk := await stream.read(65_536):
        _write_stderr(chunk)


def _write_stderr(chunk: bytes) -> None:
    # Nobody reads any more: the stack goes on without its log.
    with contextlib.suppress(OSError):
        os.write(_STDERR_FILENO, chunk)


def _end_group(pid: int) -> None:
    """Kill every process of the group that `pid` leads or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
