"""Requests on a fixed schedule, whatever becomes of those before: a program, and who runs it.

    python -m tests.configuration.open_load < job

It goes on until its standard input ends, lets what is under way end, and prints what happened. A client that waits
for an answer before it asks again would ask least when the answers are slowest, and so hide what is looked for.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from tests.load.answers import Answer
from tests.load.generator import Caller
from tests.load.jobs import Target, target

_ROOT: Final = Path(__file__).parents[2]
_CONNECT_S: Final = 10.0
_DRAIN_S: Final = 30.0
_END_S: Final = 60.0
_SHOWN: Final = 5


class OpenJob(msgspec.Struct, frozen=True):
    """What is sent: the targets in turn, `rate` requests a second, over so many connections that some are free."""

    targets: list[Target]
    rate: float
    connections: int


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request: when it was sent (`time.perf_counter()`, which all processes share), how late, how long it took."""

    sent_at: float
    late_s: float
    took_s: float


class OpenOutcome(msgspec.Struct, frozen=True):
    """What happened; anything in `failures` makes the rest worthless."""

    requests: list[Request]
    failures: list[str]

    def between(self, begin: float, end: float) -> list[Request]:
        """Return the requests that were sent between two times."""
        return [each for each in self.requests if begin <= each.sent_at < end]


class _Run:
    def __init__(self, job: OpenJob) -> None:
        self._job = job
        self._free: list[deque[Caller]] = [deque() for _ in job.targets]
        self._late_s: dict[Caller, float] = {}
        self._requests: list[Request] = []
        self._failures: list[str] = []
        self._callers: list[Caller] = []
        self._sent = 0
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._began_at = 0.0

    async def outcome(self) -> OpenOutcome:
        loop = asyncio.get_running_loop()
        await self._connect()
        end = asyncio.Event()
        # Whatever arrives: its end, too.
        loop.add_reader(sys.stdin.fileno(), end.set)
        self._began_at = loop.time()
        loop.call_soon(self._send)
        await end.wait()
        loop.remove_reader(sys.stdin.fileno())
        self._is_stopping = True
        if self._late_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _DRAIN_S)
        if self._late_s:
            self._failures.append(f"{len(self._late_s)} requests without an answer")
        for caller in self._callers:
            caller.close()
        return OpenOutcome(self._requests, self._failures[:_SHOWN])

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            for number, each in enumerate(self._job.targets):
                for _ in range(self._job.connections):
                    make = partial(Caller, number, each, self._answered, self._failures.append)
                    _, caller = await loop.create_connection(make, each.host, each.port)
                    self._callers.append(caller)
                    self._free[number].append(caller)

    def _send(self) -> None:
        if self._is_stopping:
            return
        loop = asyncio.get_running_loop()
        due_at = self._began_at + self._sent / self._job.rate
        free = self._free[self._sent % len(self._free)]
        self._sent += 1
        if free:
            caller = free.popleft()
            self._late_s[caller] = loop.time() - due_at
            caller.send()
        else:
            self._failures.append("no connection was free")
        loop.call_at(self._began_at + self._sent / self._job.rate, self._send)

    def _answered(self, caller: Caller, answer: Answer, took_s: float) -> None:
        if answer.status != 200:
            self._failures.append(f"status {answer.status}: {answer.body[:300]!r}")
        late_s = self._late_s.pop(caller)
        self._requests.append(Request(time.perf_counter() - took_s, late_s, took_s))
        self._free[caller.number].append(caller)
        if self._is_stopping and not self._late_s:
            self._idle.set()


@dataclass(slots=True)
class OpenLoad:
    """The program as it runs."""

    process: asyncio.subprocess.Process
    outcome: OpenOutcome | None = field(default=None)

    async def lasts(self, seconds: float) -> tuple[float, float]:
        """Let it go on for a while; return from when to when. Nothing is waited for: this is what is measured."""
        began_at = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), seconds)
        assert self.process.returncode is None, "the load ended"
        return began_at, time.perf_counter()

    async def end(self) -> OpenOutcome:
        """End it; return what happened."""
        text, _ = await asyncio.wait_for(self.process.communicate(b""), _END_S)
        return msgspec.json.decode(text, type=OpenOutcome)


@asynccontextmanager
async def open_load(
    base_url: str,
    headers: Mapping[str, str],
    bodies: Sequence[object],
    *,
    rate: float,
    connections: int,
) -> AsyncIterator[OpenLoad]:
    """Ask for `bodies` in turn, `rate` times a second, until the block ends or `OpenLoad.end`."""
    job = OpenJob([target(base_url, body, headers) for body in bodies], rate, connections)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.configuration.open_load"),
        cwd=_ROOT,
        env={"PYTHONPATH": f"{_ROOT}:{_ROOT / 'generated'}", "PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        await process.stdin.drain()
        yield OpenLoad(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """Do the job on the first line of standard input."""
    job = msgspec.json.decode(_line(), type=OpenJob)
    # Nothing here makes cycles that matter, and a collection would be in the figures.
    gc.disable()
    outcome = asyncio.run(_Run(job).outcome())
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def _line() -> bytes:
    """Read a line and nothing beyond it."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1)
        if not part:
            sys.exit("no job")
        line += part
    return line


if __name__ == "__main__":
    main()
