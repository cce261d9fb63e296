"""Redis stopped, emptied, restarted; callers that leave. Nothing is admitted twice or lost."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from dataplane import embedded_redis
from dataplane.domain.limiting import Demand, Denied, LimitsUnavailable, Unit, Window
from dataplane.limits.limiter import Limiter
from dataplane.limits.operations import Admit, Answer
from tests.limits.plans import only
from tests.limits.probe import Probe

PLAN = only(Unit.SPEND, Window.TOTAL, 1_000)
# 100 ms are promised; the rest is for a machine that is busy.
ADMIT_SECONDS = 0.3


async def test_a_stopped_redis_refuses_in_time_and_catches_up_when_it_is_back(
    own_probe: Probe, own_redis: embedded_redis.RunningRedis
) -> None:
    open_before = [await own_probe.reserve(f"r{number}", PLAN, cost=10) for number in range(20)]
    own_redis.process.send_signal(signal.SIGSTOP)

    started = time.monotonic()
    with pytest.raises(LimitsUnavailable):
        await own_probe.reserve("a", PLAN, cost=10)
    assert 0.09 <= time.monotonic() - started < ADMIT_SECONDS

    for reservation in open_before:
        reservation.settle(1, 3)
    await own_probe.until(lambda: not own_probe.limiter.is_available)
    started = time.monotonic()
    with pytest.raises(LimitsUnavailable):
        await own_probe.reserve("b", PLAN, cost=10)
    assert time.monotonic() - started < 0.05

    own_redis.process.send_signal(signal.SIGCONT)
    await own_probe.until(lambda: own_probe.limiter.is_available)
    await own_probe.until(lambda: own_probe.limiter.queued == 0)
    assert await own_probe.balances(PLAN) == [(60, 0)]
    await own_probe.reserve("c", PLAN, cost=10)
    assert await own_probe.balances(PLAN) == [(60, 10)]


async def test_an_admit_of_unknown_outcome_holds_nothing_in_the_end(
    own_probe: Probe, own_redis: embedded_redis.RunningRedis
) -> None:
    own_redis.process.send_signal(signal.SIGSTOP)
    waiting = [asyncio.create_task(own_probe.reserve(f"r{number}", PLAN)) for number in range(30)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, LimitsUnavailable) for outcome in outcomes)

    own_redis.process.send_signal(signal.SIGCONT)
    await own_probe.until(lambda: own_probe.limiter.queued == 0)

    assert await own_probe.balances(PLAN) == [(0, 0)]
    assert own_probe.reservation("r0") == b"released"


async def test_a_short_pause_is_bridged_by_one_retry(
    own_probe: Probe, own_redis: embedded_redis.RunningRedis
) -> None:
    own_redis.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    loop.call_later(0.055, own_redis.process.send_signal, signal.SIGCONT)

    await own_probe.reserve("a", PLAN, cost=10)

    assert await own_probe.balances(PLAN) == [(0, 10)]
    assert own_probe.limiter.is_available


async def test_a_server_that_forgot_the_script_is_taught_it_again(own_probe: Probe) -> None:
    await own_probe.reserve("a", PLAN, cost=10)
    own_probe.redis.script_flush()

    await own_probe.reserve("b", PLAN, cost=10)

    assert await own_probe.balances(PLAN) == [(0, 20)]


async def test_a_caller_that_leaves_disturbs_nobody_and_holds_nothing(probe: Probe) -> None:
    waiting = [asyncio.create_task(probe.reserve(f"r{number}", PLAN)) for number in range(60)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) == 30
    await probe.until(lambda: probe.limiter.queued == 0)
    assert await probe.balances(PLAN) == [(0, 30)]


@pytest.mark.parametrize("turns", range(12))
async def test_a_caller_that_leaves_at_any_moment_of_its_admission_holds_nothing(
    probe: Probe, turns: int
) -> None:
    task = asyncio.create_task(probe.reserve("a", PLAN))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()

    outcome = (await asyncio.gather(task, return_exceptions=True))[0]

    await probe.until(lambda: probe.limiter.queued == 0)
    held = 0 if isinstance(outcome, BaseException) else 1
    assert await probe.balances(PLAN) == [(0, held)]


async def test_a_caller_that_leaves_after_its_answer_arrived_holds_nothing(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = probe.limiter._batcher
    queue = batcher.admit

    def admit(operation: Admit) -> asyncio.Future[Answer]:
        future = queue(operation)
        # Runs between the arrival of the answer and the caller's next step.
        future.add_done_callback(lambda _: task.cancel())
        return future

    monkeypatch.setattr(batcher, "admit", admit)
    task = asyncio.create_task(probe.reserve("a", PLAN))

    with pytest.raises(asyncio.CancelledError):
        await task

    await probe.until(lambda: probe.limiter.queued == 0)
    assert await probe.balances(PLAN) == [(0, 0)]


async def test_without_redis_a_limiter_starts_and_says_that_it_is_unavailable(
    tmp_path: Path,
) -> None:
    limiter = await Limiter.connect(f"unix://{tmp_path}/nobody-listens")

    assert not limiter.is_available
    with pytest.raises(LimitsUnavailable):
        await limiter.reserve("a", PLAN, Demand(1, 1), b"")
    with pytest.raises(LimitsUnavailable):
        await limiter.forfeit("a", deadline_seconds=0.05)
    assert await limiter.aclose(0.05) == 1


async def test_a_redis_that_is_full_refuses_and_forgets_no_settle(own_probe: Probe) -> None:
    reservation = await own_probe.reserve("a", PLAN, cost=10)
    own_probe.redis.config_set("maxmemory", "1")

    with pytest.raises(LimitsUnavailable):
        await own_probe.reserve("b", PLAN, cost=10)
    reservation.settle(1, 4)
    await own_probe.until(lambda: not own_probe.limiter.is_available)

    own_probe.redis.config_set("maxmemory", "0")
    await own_probe.until(lambda: own_probe.limiter.is_available)
    await own_probe.until(lambda: own_probe.limiter.queued == 0)
    assert await own_probe.balances(PLAN) == [(4, 0)]


async def test_a_refusal_is_no_failure_of_redis(probe: Probe) -> None:
    for number in range(20):
        with pytest.raises(Denied):
            await probe.reserve(f"r{number}", PLAN, cost=2_000)

    assert probe.limiter.is_available
