"""Bursts that aim at the edges of a rolling window's slots, and what was admitted at which time."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import aiohttp

from tests.e2e.counting import Counters
from tests.e2e.tenants import Tenant

# A minute is counted in twelve slots; a window meets thirteen of them.
SLOT_S: Final = 5.0
SLOTS: Final = 13
WINDOW_S: Final = 60.0
# So far before and after an edge the two bursts begin.
_AIM_S: Final = 0.02
_BODY: Final = {
    "model": "mock-echo",
    "max_tokens": 4,
    "messages": [{"role": "user", "content": "hello"}],
}


class Bursts:
    """Bursts of one tenant at both replicas.

    Attributes:
        seen: How many answers had each status.
        slots: The most that was seen counted in each slot, by the limiter's own time.
    """

    def __init__(self, tenant: Tenant, layer: str, subject_id: str) -> None:
        """Watch what `layer` counts."""
        self._tenant = tenant
        self._layer = layer
        self._subject_id = subject_id
        self.seen: Counter[int] = Counter()
        self.slots: dict[int, int] = {}

    async def run(self, seconds: float, burst: int) -> None:
        """Send a burst right before and right after each edge of a slot, for so long."""
        headers = self._tenant.headers
        connector = aiohttp.TCPConnector(limit=0)
        with Counters(self._tenant.admin.stack) as counters:
            ends_at = counters.now_s() + seconds
            async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
                while (now := counters.now_s()) < ends_at:
                    edge = (now // SLOT_S + 1) * SLOT_S
                    await asyncio.sleep(edge - _AIM_S - now)
                    await self._burst(session, burst)
                    await asyncio.sleep(max(0.0, edge + _AIM_S - counters.now_s()))
                    await self._burst(session, burst)
                    # A slot stays for more than a minute: once after each edge is often enough.
                    for slot, amount in counters.slots(self._layer, self._subject_id).items():
                        self.slots[slot] = max(self.slots.get(slot, 0), amount)

    async def _burst(self, session: aiohttp.ClientSession, number: int) -> None:
        urls = self._tenant.admin.stack.base_urls

        async def call(turn: int) -> None:
            url = f"{urls[turn % len(urls)]}/v1/chat/completions"
            async with session.post(url, json=_BODY) as answer:
                await answer.read()
                self.seen[answer.status] += 1

        await asyncio.gather(*(call(turn) for turn in range(number)))


def most_within(times: Iterable[float], seconds: float) -> int:
    """Return the most of `times` that any window of so many seconds has, both ends included."""
    ordered = sorted(times)
    first, most = 0, 0
    for last, at in enumerate(ordered):
        while at - ordered[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def most_in_slots(slots: dict[int, int], number: int) -> int:
    """Return the most that any `number` slots in a row have counted."""
    starts: Sequence[int] = list(slots)
    return max(sum(slots.get(start + turn, 0) for turn in range(number)) for start in starts)
