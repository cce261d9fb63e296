"""How long a data plane took to answer, as its caller can know it.

A request id holds the millisecond in which the data plane had read the request, by the clock of the
machine that the caller shares. What the caller's own event loop was late is told apart: nobody promised that.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp

_TICK_S: Final = 0.005
_TIMESTAMP_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer. `took_ms` is from request read to headers seen, `late_ms` the part that may be ours."""

    status: int
    code: str
    request_id: str
    is_degraded: bool
    retry_after: str
    took_ms: int
    late_ms: int


@dataclass(slots=True)
class Lateness:
    """How late this process' event loop was, lately."""

    _ticks: list[tuple[float, float]] = field(default_factory=list)

    def most_ms(self, since: float) -> int:
        """Return the most it was late at once since then, by the loop's clock."""
        now = asyncio.get_running_loop().time()
        # The turn under way counts: its tick comes after it.
        under_way = now - self._ticks[-1][0] - _TICK_S if self._ticks else 0.0
        late = [late for at, late in self._ticks if at >= since]
        return int(1000 * max([under_way, 0.0, *late]))

    async def watch(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_TICK_S)
            now = loop.time()
            self._ticks.append((now, now - began - _TICK_S))


class TimedClient:
    """Makes short calls, as many at once as wanted."""

    def __init__(self, session: aiohttp.ClientSession, lateness: Lateness) -> None:
        """Use `session`."""
        self._session = session
        self._lateness = lateness

    async def chat(self, base_url: str, headers: dict[str, str], model: str) -> Timed:
        """Make one call and read its answer."""
        body = {
            "model": model,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "hello"}],
        }
        began = asyncio.get_running_loop().time()
        url = f"{base_url}/v1/chat/completions"
        async with self._session.post(url, json=body, headers=headers) as answer:
            seen_ms = time.time_ns() // 1_000_000
            late_ms = self._lateness.most_ms(began)
            await answer.read()
            request_id = answer.headers["x-request-id"]
            return Timed(
                answer.status,
                answer.headers.get("x-tollkeeper-error", ""),
                request_id,
                answer.headers.get("x-tollkeeper-limits") == "degraded",
                answer.headers.get("retry-after", ""),
                seen_ms - read_at_ms(request_id),
                late_ms,
            )


def read_at_ms(request_id: str) -> int:
    """Return when the data plane had read a request, in Unix milliseconds."""
    return int(request_id.replace("-", "")[:_TIMESTAMP_DIGITS], 16)


def percentile(values: Sequence[int], percent: int) -> int:
    """Return the smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


@contextlib.asynccontextmanager
async def timed_client() -> AsyncIterator[TimedClient]:
    """Open a client; its connections end with the block."""
    lateness = Lateness()
    watch = asyncio.create_task(lateness.watch())
    try:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
        ) as session:
            yield TimedClient(session, lateness)
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
