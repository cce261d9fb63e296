"""A flood of registrations, from a process of its own: it must not slow down whoever measures."""

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from typing import Final

import aiohttp

ABOUT: Final = {"deviceName": "flood", "platform": "linux", "version": "1"}


@dataclass(frozen=True, slots=True)
class Flood:
    """How many registrations, from how many addresses, over how many connections, to whom."""

    base_urls: tuple[str, ...]
    addresses: int
    registrations: int
    connections: int = 50


@dataclass(frozen=True, slots=True)
class Met:
    """What they met: how often each status, and the shortest and longest Retry-After of a 429."""

    statuses: Counter[int]
    least_wait_s: int
    most_wait_s: int


def pour(flood: Flood) -> Met:
    """Register as fast as the connections can."""
    # As on another machine: the programs under test come first.
    os.nice(19)
    return asyncio.run(_pour(flood))


async def _pour(flood: Flood) -> Met:
    turns = iter(range(flood.registrations))
    statuses: Counter[int] = Counter()
    waits: list[int] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for turn in turns:
            url = f"{flood.base_urls[turn % len(flood.base_urls)]}/v1/devices/register"
            address = {"x-forwarded-for": f"203.0.113.{turn % flood.addresses}"}
            async with session.post(url, json=ABOUT, headers=address) as answer:
                await answer.read()
                statuses[answer.status] += 1
                if answer.status == 429:
                    waits.append(int(answer.headers["retry-after"]))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(flood.connections)))
    return Met(statuses, min(waits, default=0), max(waits, default=0))
