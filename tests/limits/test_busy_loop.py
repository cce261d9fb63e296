"""A process that is busy with itself: that is not Redis being away, and refuses nobody."""

import asyncio
import signal
import time

import pytest

from dataplane import embedded_redis
from dataplane.domain.limiting import LimitsUnavailable, Unit, Window
from dataplane.limits.patience import Deadline
from tests.limits.plans import only
from tests.limits.probe import Probe

PLAN = only(Unit.SPEND, Window.TOTAL, 1_000_000)
# Longer than every deadline of the limiter.
BUSY_SECONDS = 0.15


async def busy() -> None:
    time.sleep(BUSY_SECONDS)  # noqa: ASYNC251 - a turn that takes long is what it is about


async def test_callers_that_arrive_faster_than_they_can_be_served_are_all_admitted(
    probe: Probe,
) -> None:
    async def arrive(number: int) -> None:
        if number % 30 == 0:
            await busy()
        await probe.reserve(f"r{number}", PLAN, cost=10)

    await asyncio.gather(*(arrive(number) for number in range(400)))

    assert await probe.balances(PLAN) == [(0, 4_000)]
    assert probe.limiter.is_available


async def test_a_busy_turn_while_redis_answers_costs_nobody_an_answer(probe: Probe) -> None:
    for number in range(5):
        waiting = asyncio.create_task(probe.reserve(f"r{number}", PLAN, cost=10))
        for _ in range(3):
            await asyncio.sleep(0)
            await busy()
        await waiting

    assert await probe.balances(PLAN) == [(0, 50)]


async def test_a_stopped_redis_is_noticed_by_a_busy_process_too(
    own_probe: Probe, own_redis: embedded_redis.RunningRedis
) -> None:
    own_redis.process.send_signal(signal.SIGSTOP)
    waiting = asyncio.create_task(own_probe.reserve("a", PLAN, cost=10))
    async with asyncio.timeout(10):
        while not waiting.done():
            await asyncio.sleep(0)
            await busy()

    with pytest.raises(LimitsUnavailable):
        await waiting


async def test_a_deadline_ends_what_takes_longer_and_nothing_else() -> None:
    async with Deadline(5.0):
        await asyncio.sleep(0.001)

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Deadline(0.05):
            await asyncio.sleep(10)
    assert 0.045 <= time.monotonic() - started < 1.0
