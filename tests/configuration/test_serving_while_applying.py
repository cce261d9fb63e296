"""Nobody notices that their data plane is being given a whole new configuration.

Everything differs in it: it is of another epoch, so that it comes as a FULL, and no user and no key means what it
meant before. The load goes on all the time, at a fixed rate and through Redis; latencies before and during are
compared. The memory of the process is looked at from outside.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import update

from controlplane.domain.epochs import new_epoch
from controlplane.store import tables
from controlplane.store.database import Store
from tests.configuration.large_database import AT
from tests.configuration.open_load import OpenLoad, OpenOutcome, Request, open_load
from tests.configuration.planes import Caller, Plane, Planes, planes_in
from tests.configuration.proxy import proxying
from tests.e2e.waiting import eventually_async
from tests.load.machine import pin, usable_cores

# So many requests may be under way: of each sort those of one and a half seconds.
CONNECTIONS: Final = 150
# Half of the requests are streams.
BODIES: Final = tuple(
    {
        "model": "mock-echo",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": is_stream,
    }
    for is_stream in (False, True)
)
_NICE: Final = 10
_KIB: Final = 1024
_FIELDS: Final = "VmHWM:", "VmRSS:"


@dataclass(frozen=True)
class Size:
    """How much of everything, and what is asserted of it."""

    keys: int
    rate: float
    warm_s: float
    before_s: float
    after_s: float
    added_ms: float
    memory_factor: float
    deadline_s: float
    is_pinned: bool


# With 2,000 keys what the process needs besides is more than the snapshot, and three test workers share two cores.
SMALL = Size(2_000, 40, 0.5, 1.0, 1.0, 500, 20, 30, is_pinned=False)
FULL = Size(100_000, 200, 5.0, 20.0, 10.0, 50, 2, 240, is_pinned=True)
SIZES = [
    pytest.param(SMALL, id="small"),
    pytest.param(FULL, id="full", marks=pytest.mark.long),
]


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one data plane, in bytes: without a snapshot, with one, and at most while it was given another."""

    bare: int
    held: int
    peak: int

    @property
    def factor(self) -> float:
        """Return how many snapshots the peak is."""
        return (self.peak - self.bare) / (self.held - self.bare)


@pytest.mark.parametrize("size", SIZES)
async def test_nobody_notices_that_everything_is_replaced(size: Size, tmp_path: Path) -> None:
    with cores(size) as core:
        async with planes_in(tmp_path, keys=size.keys) as planes:
            caller = await planes.new_caller()
            bare = await bare_bytes(planes)
            plane = await planes.started("node")
            await planes.until_known(caller, plane)
            if core is not None:
                pin(plane.pid, core)
                make_way(planes.control_plane.process.pid)
            async with loaded(plane, caller, size.rate) as load:
                # What the first configuration made necessary is done by then.
                await load.lasts(size.warm_s)
                before = await load.lasts(size.before_s)
                held = resident(plane)[1]
                forget_peak(plane)
                began_at = time.perf_counter()
                revision = await change_everything(planes)
                await until_applied(plane, revision, size.deadline_s)
                # What was replaced is let go of, and what is new is written to the disk, after it is in force.
                _, ended_at = await load.lasts(size.after_s)
                memory = Memory(bare, held, resident(plane)[0])
                outcome = await load.end()
            assert await planes.status(plane, headers=caller.headers) == 200
    check(size, outcome, before, (began_at, ended_at))
    report_memory(memory)
    assert memory.factor <= size.memory_factor


@contextmanager
def cores(size: Size) -> Iterator[int | None]:
    """Keep this process and all that it starts on one core; gives another, for the data plane."""
    if not size.is_pinned:
        yield None
        return
    before = os.sched_getaffinity(0)
    first, *_, last = usable_cores()
    os.sched_setaffinity(0, {first})
    try:
        yield last
    finally:
        os.sched_setaffinity(0, before)


def make_way(pid: int) -> None:
    """Have a process let others go first: in life it does not share a core with the load, Redis and the mock."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), _NICE)


async def bare_bytes(planes: Planes) -> int:
    """Return the resident memory of a data plane that never had a configuration."""
    async with proxying() as nowhere:
        plane = await planes.start("bare", nowhere.address)
        found = resident(plane)[1]
        await plane.kill()
    return found


@asynccontextmanager
async def loaded(plane: Plane, caller: Caller, rate: float) -> AsyncIterator[OpenLoad]:
    async with open_load(
        plane.base_url, caller.headers, BODIES, rate=rate, connections=CONNECTIONS
    ) as load:
        yield load


async def change_everything(planes: Planes) -> int:
    """Write another configuration, of another epoch; return its revision.

    The time zones of all organizations differ, so that all users and keys have to be made anew, and all rows
    have another revision, so that no resource is as it was.
    """
    store = Store(planes.database_url)
    try:
        async with store.ledger() as session:
            counter = await session.get_one(tables.RevisionCounter, 1)
            counter.revision += 1
            counter.config_epoch = new_epoch(AT, os.urandom(6), after=counter.config_epoch)
            session.add(counter)
            await session.exec(
                update(tables.Organization).values(
                    time_zone="Europe/Berlin", revision=counter.revision
                )
            )
            for table in (tables.User, tables.ApiKey):
                await session.exec(update(table).values(revision=counter.revision))
            return counter.revision
    finally:
        await store.close()


async def until_applied(plane: Plane, revision: int, deadline_s: float) -> None:
    """Wait until a data plane says that a revision is in force."""

    async def has_applied() -> bool:
        assert not plane.said("config_refused"), plane.log[-4_000:]
        applied = plane.said("config_applied")
        return any(each["revision"] == revision for each in applied)

    await eventually_async(has_applied, deadline_s)


def resident(plane: Plane) -> tuple[int, int]:
    """Return the peak and the present resident memory, in bytes."""
    lines = Path(f"/proc/{plane.pid}/status").read_text("utf-8").splitlines()
    sizes = {
        line.split()[0]: int(line.split()[1]) * _KIB for line in lines if line.startswith("Vm")
    }
    peak, now = (sizes[name] for name in _FIELDS)
    return peak, now


def forget_peak(plane: Plane) -> None:
    """Have the peak counted from now on."""
    Path(f"/proc/{plane.pid}/clear_refs").write_text("5", "utf-8")


def check(
    size: Size, outcome: OpenOutcome, before: tuple[float, float], during: tuple[float, float]
) -> None:
    """Compare latencies.

    A request is slow because of the new configuration when it is slower than requests are without it. The slowest of
    a window before stands for those: it contains what else happens on the machine. A request may not take longer
    than that and 50 ms together.
    """
    assert not outcome.failures, outcome.failures
    found = [took_ms(outcome.between(*window)) for window in (before, during)]
    for name, took in zip(("before", "during"), found, strict=True):
        print(  # noqa: T201 - shown by -s
            f"{name}: {len(took)} requests, p50 {quantile(took, 0.5):.1f} ms,"
            f" p99 {quantile(took, 0.99):.1f} ms, p99.9 {quantile(took, 0.999):.1f} ms,"
            f" longest {took[-1]:.1f} ms"
        )
    for took, (begin, end) in zip(found, (before, during), strict=True):
        # Nothing was left out, and the rate was held.
        assert len(took) >= (end - begin) * size.rate * 0.98 - 2
    assert found[1][-1] <= size.added_ms + found[0][-1]


def took_ms(requests: list[Request]) -> list[float]:
    return sorted(each.took_s * 1000 for each in requests)


def quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report_memory(memory: Memory) -> None:
    mib = 1024 * 1024
    print(  # noqa: T201 - shown by -s
        f"memory: {memory.bare / mib:.0f} MiB bare, {memory.held / mib:.0f} MiB with the snapshot,"
        f" {memory.peak / mib:.0f} MiB at most: {memory.factor:.2f} snapshots"
    )
