"""Whoever floods the registration fills no database, and does not slow the others down."""

import asyncio
import multiprocessing
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import SETTINGS
from tests.e2e.customers import new_customer
from tests.e2e.devices import BODY
from tests.e2e.flooding import Flood, pour
from tests.e2e.stack import Stack

# What one address and all together may register at once, and how many devices may wait.
BURST_PER_ADDRESS = 30
BURST_IN_ALL = 60
REFILL_PER_S = 1
MAX_PENDING = 1_000
CALLS_PER_S = 50


@dataclass(frozen=True, slots=True)
class Profile:
    """How large the flood is, and for how long the others are watched before it."""

    flood: Flood
    calm_s: float
    checks_latency: bool = True


SMALL = Profile(Flood((), addresses=12, registrations=600), calm_s=0.5, checks_latency=False)
# Long enough that its rate is that of an attack and not of a busy client machine.
FULL = Profile(Flood((), addresses=50, registrations=10_000), calm_s=10.0)


@pytest.fixture
def flooded(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own: nobody can register after this."""
    stack = Stack(tmp_path, environ=SETTINGS)
    yield stack
    stack.stop()


@pytest.fixture
def one_process() -> Iterator[ProcessPoolExecutor]:
    """A process for the flood."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    "profile", [SMALL, pytest.param(FULL, marks=pytest.mark.long)], ids=["small", "full"]
)
async def test_a_flood_of_registrations_stays_within_its_caps(
    flooded: Stack, one_process: ProcessPoolExecutor, profile: Profile
) -> None:
    customer = new_customer(flooded, "--daily-requests", "none", "--daily-tokens", "none")
    # One registration beforehand: the table has its first page.
    database = flooded.data_dir / "controlplane" / "controlplane.sqlite"
    size_before = database_bytes(database)
    async with others(flooded, customer.api_key) as calm_ms:
        await asyncio.sleep(profile.calm_s)
    began_at = time.monotonic()
    async with others(flooded, customer.api_key) as busy_ms:
        met = await asyncio.get_running_loop().run_in_executor(
            one_process, pour, replace(profile.flood, base_urls=tuple(flooded.base_urls))
        )
    took_s = time.monotonic() - began_at

    admitted = met.statuses[201]
    assert met.statuses == {201: admitted, 429: profile.flood.registrations - admitted}
    assert admitted <= BURST_IN_ALL + REFILL_PER_S * took_s + 1
    assert admitted >= min(BURST_IN_ALL, BURST_PER_ADDRESS * profile.flood.addresses)
    assert 1 <= met.least_wait_s <= met.most_wait_s <= 120 * 1.03 + 1
    waiting = flooded.tollkeeper("device", "list", "--status", "pending_approval")
    assert len(waiting) == admitted <= MAX_PENDING
    assert max(Counter(each["address"] for each in waiting).values()) <= BURST_PER_ADDRESS + 1
    # Refused ones leave nothing; the others' calls have their rows in the ledger.
    rows = len(calm_ms) + len(busy_ms)
    assert database_bytes(database) - size_before < 8_192 * admitted + 1_024 * rows
    if profile.checks_latency:
        assert p99(busy_ms) < 2 * max(p99(calm_ms), 5.0), (p99(calm_ms), p99(busy_ms))


@asynccontextmanager
async def others(stack: Stack, api_key: str) -> AsyncIterator[list[float]]:
    """Make calls at a steady pace meanwhile; yields how long each took, in milliseconds."""
    took_ms: list[float] = []
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=30) as client:

        async def call(base_url: str) -> None:
            began_at = time.perf_counter()
            answer = await client.post(f"{base_url}/v1/chat/completions", json=BODY)
            assert answer.status_code == 200, answer.text
            took_ms.append((time.perf_counter() - began_at) * 1000)

        async def steadily() -> None:
            async with asyncio.TaskGroup() as group:
                turn = 0
                while True:
                    group.create_task(call(stack.base_urls[turn % len(stack.base_urls)]))
                    turn += 1
                    await asyncio.sleep(1 / CALLS_PER_S)

        task = asyncio.create_task(steadily())
        try:
            yield took_ms
        finally:
            task.cancel()
            # What was under way is let go of; a call that failed is a failure of the test.
            with suppress(asyncio.CancelledError):
                await task
    assert took_ms


def p99(milliseconds: list[float]) -> float:
    return statistics.quantiles(milliseconds, n=100)[98]


def database_bytes(path: Path) -> int:
    """Return how much of the database is in use; its file grows in larger steps."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)
