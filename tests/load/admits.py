"""Load on the limiter alone, a program: one JSON job on standard input, one JSON outcome on output.

A limiter as a data plane has it, in a process and on a core of its own, on a server of its own.
Requests come as independent callers make them, so many a second, whether or not those before them
were answered; or from callers of whom each waits for its last request. Each has thirteen layers of
all kinds and is settled as soon as it was admitted.
"""

import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from dataplane.domain.calls import NO_LAYERS
from dataplane.domain.limiting import Demand, LimitsUnavailable, SubjectKind
from dataplane.domain.principals import Organization, Principal, User
from dataplane.domain.request_ids import request_id
from dataplane.domain.snapshot import Position
from dataplane.limits.desk import open_counters
from dataplane.limits.limiter import Limiter
from tests.control.usage_events import usage_event
from tests.load.figures import percentile
from tests.load.layers import thirteen_layers
from tests.load.machine import core_busy_seconds, pin
from tests.load.redis_work import RedisWork, redis_work

_DEMAND: Final = Demand(2_000, 4_000_000, 1_000_000)
_TOOK: Final = (1_000, 900_000)
_CLOSE_S: Final = 5.0
_POSITION: Final = Position("t019ab0c1d2e3-0123456789ab", 4_711, bytes(32))
_CALLER: Final = Principal(
    SubjectKind.KEY, "k_1", "laptop", User("u_1", "alice", Organization("o_1", "acme")), "r_1"
)


class AdmitJob(msgspec.Struct, frozen=True, kw_only=True):
    """One phase.

    Attributes:
        redis_url: Of a server that nobody else uses.
        seconds: Length of the window that counts.
        warmup_s: Load before it.
        rate: Requests a second on average, as a Poisson process; None: from `callers`.
        callers: How many callers wait each for its last request; one alone waits also until that is
            settled, so that each admit and each settle is a call of the script of its own.
        core: Where the process runs, alone; None: anywhere.
    """

    redis_url: str
    seconds: float
    warmup_s: float
    rate: float | None = None
    callers: int = 1
    core: int | None = None


class AdmitOutcome(msgspec.Struct, frozen=True):
    """What happened in the window.

    Attributes:
        seconds: Its real length.
        admits: Requests that were admitted.
        unavailable: Requests that were refused because Redis did not answer in time.
        p50_ms: From the call of the limiter to its answer; 0 without any.
        p99_ms: Likewise.
        cpu_s: CPU time of this process.
        core_busy_s: What its core did, whoever asked for it.
        redis: What the server did.
    """

    seconds: float
    admits: int
    unavailable: int
    p50_ms: float
    p99_ms: float
    cpu_s: float
    core_busy_s: float
    redis: RedisWork


class Mark(msgspec.Struct, frozen=True):
    """The counters at one moment."""

    at: float
    admits: int
    unavailable: int
    cpu_s: float
    core_busy_s: float
    redis: RedisWork


class Admissions:
    """One job under way."""

    def __init__(self, job: AdmitJob, limiter: Limiter) -> None:
        self._job = job
        self._limiter = limiter
        self._plan = thirteen_layers()
        # As much as production says of a request.
        self._meta = msgspec.json.encode(msgspec.structs.replace(usage_event(), layers=NO_LAYERS))
        self._took_s: list[float] = []
        self._unavailable = 0
        self._random = random.Random(1)

    async def outcome(self) -> AdmitOutcome:
        """Do the job."""
        work = self._open_loop if self._job.rate else self._closed_loops
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(work(tasks))
            await asyncio.sleep(self._job.warmup_s)
            begin = await self._mark()
            await asyncio.sleep(self._job.seconds)
            end = await self._mark()
            load.cancel()
        return self._outcome(begin, end)

    async def _open_loop(self, tasks: asyncio.TaskGroup) -> None:
        loop, rate = asyncio.get_running_loop(), self._job.rate or 1.0
        due = loop.time()
        while True:
            due += self._random.expovariate(rate)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            tasks.create_task(self._one())

    async def _closed_loops(self, _tasks: asyncio.TaskGroup) -> None:
        async with asyncio.TaskGroup() as callers:
            for _ in range(self._job.callers):
                callers.create_task(self._one_after_the_other())

    async def _one_after_the_other(self) -> None:
        while True:
            await self._one()
            while self._job.callers == 1 and self._limiter.queued:
                await asyncio.sleep(0)

    async def _one(self) -> None:
        name = request_id(time.time_ns() // 1_000_000, os.urandom(10))
        began_at = time.perf_counter()
        try:
            reservation = await self._limiter.reserve(
                name,
                self._plan,
                _DEMAND,
                self._meta,
                position=_POSITION,
                principal=_CALLER,
            )
        except LimitsUnavailable:
            self._unavailable += 1
            # A caller that is refused at once must not keep the others from their turn.
            await asyncio.sleep(0.01)
            return
        self._took_s.append(time.perf_counter() - began_at)
        reservation.settle(*_TOOK)

    async def _mark(self) -> Mark:
        core = self._job.core
        # In a thread: an answer that is waited for here would delay all requests.
        redis = await asyncio.to_thread(redis_work, self._job.redis_url)
        return Mark(
            at=time.perf_counter(),
            admits=len(self._took_s),
            unavailable=self._unavailable,
            cpu_s=time.process_time(),
            core_busy_s=0.0 if core is None else core_busy_seconds(core),
            redis=redis,
        )

    def _outcome(self, begin: Mark, end: Mark) -> AdmitOutcome:
        took_s = sorted(self._took_s[begin.admits : end.admits])
        return AdmitOutcome(
            seconds=end.at - begin.at,
            admits=len(took_s),
            unavailable=end.unavailable - begin.unavailable,
            p50_ms=percentile(took_s, 50) * 1000 if took_s else 0.0,
            p99_ms=percentile(took_s, 99) * 1000 if took_s else 0.0,
            cpu_s=end.cpu_s - begin.cpu_s,
            core_busy_s=end.core_busy_s - begin.core_busy_s,
            redis=end.redis.since(begin.redis),
        )


async def outcome_of(job: AdmitJob) -> AdmitOutcome:
    """Do a job; the counters are opened as if they had been rebuilt from nothing."""
    await open_counters(job.redis_url)
    limiter = await Limiter.connect(job.redis_url)
    try:
        with _without_collections():
            return await Admissions(job, limiter).outcome()
    finally:
        await limiter.aclose(_CLOSE_S)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Leave collections out of the figures: a data plane sees to it that they are rare."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main() -> None:
    """Do the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=AdmitJob)
    if job.core is not None:
        pin(os.getpid(), job.core)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(outcome_of(job))) + b"\n")


if __name__ == "__main__":
    main()
