"""Waves of streamed calls of random size over both replicas, and how each of them ended."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tests.e2e.calls import Answer, Client
from tests.e2e.waiting import eventually_async

# With these in front every size has one price: `Storm.prices` sets it for the pattern.
_PREFIX: Final = "mock-pace-"
_LEAST_TOKENS: Final = 8
_MOST_TOKENS: Final = 120
# Reading costs this part of what writing does.
_INPUT_PART: Final = 4
_UNAVAILABLE: Final = 503
_PAUSE_S: Final = 0.1
# Redis is started again after two seconds, and its counters are rebuilt.
_RECOVERY_S: Final = 40.0


@dataclass(slots=True)
class Storm:
    """Calls of one client.

    Attributes:
        client: Makes them.
        base_urls: The replicas, which get them in turns.
        answers: How those ended that are over.
        begun: How many have delivered content.
    """

    client: Client
    base_urls: list[str]
    answers: list[Answer] = field(default_factory=list)
    begun: int = 0

    @staticmethod
    def price(number: int, usd: float) -> tuple[str, ...]:
        """Return the command that makes `number` calls cost about `usd` in all."""
        each = usd / number / ((_LEAST_TOKENS + _MOST_TOKENS) / 2)
        output = f"{each * 1_000_000:.6f}"
        reading = f"{each * 1_000_000 / _INPUT_PART:.6f}"
        return (
            *("price", "set", "--provider", "mock", "--model", f"{_PREFIX}*"),
            *("--output-usd-per-million", output, "--input-usd-per-million", reading),
        )

    def wave(self, number: int, most_pace_ms: int = 20) -> "list[asyncio.Task[Answer]]":
        """Begin so many calls at once; their tokens come at most so slowly."""
        self.begun = 0
        return [asyncio.create_task(self._call(turn, most_pace_ms)) for turn in range(number)]

    async def half_way(self, wave: "list[asyncio.Task[Answer]]") -> None:
        """Wait until half of a wave has delivered content, or ended."""
        while self.begun < len(wave) // 2 and sum(task.done() for task in wave) < len(wave) // 2:
            await asyncio.sleep(0.005)

    async def during(self, work: Awaitable[None]) -> None:
        """Call both replicas over and over until `work` is done."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.gather(*(self._call(turn) for turn in range(len(self.base_urls))))
            await asyncio.sleep(_PAUSE_S)
        await task

    async def passes(self) -> None:
        """Call each replica until it no longer says that limits are unavailable."""

        async def is_asked(turn: int) -> bool:
            return (await self._call(turn)).status not in (0, _UNAVAILABLE)

        for turn in range(len(self.base_urls)):
            await eventually_async(partial(is_asked, turn), _RECOVERY_S)

    def seen(self) -> Counter[tuple[int, str]]:
        """Return how many ended with each status and code."""
        return Counter((answer.status, answer.code) for answer in self.answers)

    def ids(self, *statuses: int) -> set[str]:
        """Return the ids of the calls that ended with one of the statuses."""
        return {each.request_id for each in self.answers if each.status in statuses}

    async def _call(self, turn: int, most_pace_ms: int = 1) -> Answer:
        tokens = random.randint(_LEAST_TOKENS, _MOST_TOKENS)
        pace_ms = random.randint(1, most_pace_ms)
        is_first = True

        def note() -> None:
            nonlocal is_first
            self.begun += is_first
            is_first = False

        answer = await self.client.chat(
            self.base_urls[turn % len(self.base_urls)],
            model=f"{_PREFIX}{pace_ms}-tokens-{tokens}",
            stream=True,
            max_tokens=tokens + random.randint(0, 10),
            on_content=note,
        )
        self.answers.append(answer)
        return answer
