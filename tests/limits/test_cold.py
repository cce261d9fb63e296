"""Counters that were emptied, restored or left by a restart admit nothing before they are rebuilt."""

import asyncio
import secrets
import signal
from pathlib import Path

import pytest
from redis.exceptions import ReadOnlyError

from dataplane import embedded_redis
from dataplane.domain.breaker import BreakerState
from dataplane.domain.guards import Check, Guard
from dataplane.domain.limiting import Demand, LimitsUnavailable, Unit, Window, plan_of
from dataplane.limits.connection import new_epoch
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk, open_counters
from dataplane.limits.guards import Guards
from dataplane.limits.limiter import Limiter
from dataplane.limits.operations import Outcome
from dataplane.limits.upkeep import OpenEpoch, Restore
from tests.limits.plans import budget, only
from tests.limits.probe import Probe, until

PLAN = only(Unit.SPEND, Window.TOTAL, 1_000)
PASSWORD = secrets.token_hex(8)


def calls(probe: Probe, command: str) -> int:
    """Return how often the server was asked this since it started."""
    stats = probe.redis.info("commandstats")
    assert isinstance(stats, dict)
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def until_looked_at(probe: Probe, times: int) -> None:
    """Return when the limiter has looked at its cold counters some times more."""
    before = calls(probe, "get")
    await probe.until(lambda: calls(probe, "get") >= before + times)


async def empty(probe: Probe) -> None:
    """Empty the server; the next request finds it out."""
    probe.redis.flushall()
    with pytest.raises(LimitsUnavailable):
        await probe.reserve("nobody", PLAN)
    assert probe.limiter.is_cold


async def until_open(probe: Probe) -> None:
    """Open an epoch on what is there, and wait until the limiter has seen it."""
    assert await open_counters(probe.redis_url, probe.hash_tag) is not None
    await probe.until(lambda: probe.limiter.is_available)


async def test_an_emptied_server_admits_nothing_until_its_counters_were_rebuilt(
    own_probe: Probe,
) -> None:
    limiter = own_probe.limiter
    since = limiter.available_since
    await own_probe.reserve("a", PLAN, cost=10)
    own_probe.redis.flushall()

    with pytest.raises(LimitsUnavailable):
        await own_probe.reserve("b", PLAN, cost=20)

    assert (limiter.is_cold, limiter.is_available) == (True, False)
    async with asyncio.timeout(1.0):
        with pytest.raises(LimitsUnavailable):
            await limiter.balances(PLAN)
    await until_looked_at(own_probe, 3)
    assert own_probe.redis.get(own_probe.keyspace.epoch) is None
    with pytest.raises(LimitsUnavailable):
        await own_probe.reserve("c", PLAN, cost=20)
    assert limiter.state is BreakerState.CLOSED
    assert limiter.available_since == since

    await until_open(own_probe)

    assert not limiter.is_cold
    assert limiter.available_since > since
    await own_probe.reserve("d", PLAN, cost=30)
    assert await own_probe.balances(PLAN) == [(0, 30)]


async def test_an_emptied_server_is_noticed_without_traffic(own_probe: Probe) -> None:
    own_probe.redis.flushall()

    await own_probe.until(lambda: own_probe.limiter.is_cold)

    assert not own_probe.limiter.is_available


async def test_a_hold_cannot_be_raised_while_the_counters_are_cold(own_probe: Probe) -> None:
    plan = plan_of([budget(100, Window.TOTAL, is_hard=False)])
    reservation = await own_probe.limiter.reserve("a", plan, Demand(1, 50, 10), b"")
    await empty(own_probe)

    with pytest.raises(LimitsUnavailable):
        await reservation.extend(20)

    assert own_probe.limiter.queued == 0


async def test_a_balance_of_an_emptied_server_is_not_told(own_probe: Probe) -> None:
    await own_probe.reserve("a", PLAN, cost=10)
    own_probe.redis.flushall()

    with pytest.raises(LimitsUnavailable):
        await own_probe.balances(PLAN)


async def test_a_limiter_that_starts_on_a_cold_server_waits_for_its_epoch(redis_url: str) -> None:
    async with Probe.on(redis_url, is_cold=True) as probe:
        assert (probe.limiter.is_cold, probe.limiter.is_available) == (True, False)
        with pytest.raises(LimitsUnavailable):
            await probe.reserve("a", PLAN)

        await until_open(probe)

        # The clock was never asked before: the periods of the first request are right all the same.
        await probe.reserve("a", only(Unit.REQUESTS, Window.DAY, 1))
        assert probe.redis.exists(probe.keyspace.reservation("a"))


async def test_a_restarted_server_is_cold_although_it_has_its_counters(tmp_path: Path) -> None:
    first = embedded_redis.start(tmp_path, password=PASSWORD)
    async with Probe.on(first.url) as probe:
        before = await probe.reserve("a", PLAN, cost=10)
        first.stop()
        second = embedded_redis.start(tmp_path, port=first.port, password=PASSWORD)
        try:
            await probe.until(lambda: probe.limiter.is_cold)
            assert probe.redis.exists(probe.keyspace.reservation("a"))
            with pytest.raises(LimitsUnavailable):
                await probe.reserve("b", PLAN, cost=10)

            await until_open(probe)

            # What an earlier epoch counted is for the ledger to tell: it moves nothing here.
            before.settle(1, 4)
            await probe.until(lambda: probe.limiter.queued == 0)
            assert await probe.balances(PLAN) == [(0, 10)]
            assert not probe.redis.exists(probe.keyspace.reservation("a"))
        finally:
            second.stop()


async def test_a_settle_waits_for_the_epoch_in_which_its_request_was_restored(
    own_probe: Probe,
) -> None:
    reservation = await own_probe.reserve("a", PLAN, cost=10)
    await empty(own_probe)
    [held] = own_probe.limiter.in_flight()

    reservation.settle(1, 4)
    asked = calls(own_probe, "evalsha")
    await until_looked_at(own_probe, 3)
    assert own_probe.limiter.queued == 1
    assert calls(own_probe, "evalsha") == asked
    assert own_probe.limiter.in_flight() == []

    desk = CounterDesk(own_probe.redis_url, own_probe.keyspace)
    epoch = new_epoch(await desk.run_id())
    restore = Restore(held.request_id, held.counters, held.meta, held.admitted_at_ms, epoch)
    answers = await desk.run(restore, OpenEpoch(epoch))
    await desk.aclose()
    assert [answer[0] for answer in answers] == [Outcome.OK, Outcome.OK]

    await own_probe.until(lambda: own_probe.limiter.queued == 0)
    assert await own_probe.balances(PLAN) == [(4, 0)]


async def test_counters_that_were_rebuilt_before_anybody_noticed_refuse_nobody(
    own_probe: Probe,
) -> None:
    await own_probe.reserve("a", PLAN, cost=10)
    own_probe.redis.flushall()
    await open_counters(own_probe.redis_url, own_probe.hash_tag)

    outcomes = await asyncio.gather(
        *(own_probe.reserve(f"r{number}", PLAN, cost=10) for number in range(5))
    )

    assert len(outcomes) == 5
    assert await own_probe.balances(PLAN) == [(0, 50)]


async def test_callers_who_wait_when_the_counters_turn_out_cold_are_told_at_once(
    own_probe: Probe,
) -> None:
    own_probe.redis.flushall()
    waiting = [asyncio.create_task(own_probe.reserve(f"r{number}", PLAN)) for number in range(200)]

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {LimitsUnavailable}
    assert {str(outcome) for outcome in outcomes} == {"the counters are being rebuilt"}
    assert own_probe.limiter.queued == 0


async def test_a_server_that_hangs_is_noticed_without_traffic(
    own_probe: Probe, own_redis: embedded_redis.RunningRedis
) -> None:
    loop = asyncio.get_running_loop()
    limiter = own_probe.limiter
    own_redis.process.send_signal(signal.SIGSTOP)
    stopped_at = loop.time()

    await own_probe.until(lambda: not limiter.is_available)

    # Two seconds are promised; the rest is for a machine that is busy.
    assert loop.time() - stopped_at < 4.0
    assert (limiter.state, limiter.is_cold) == (BreakerState.OPEN, False)

    own_redis.process.send_signal(signal.SIGCONT)
    await own_probe.until(lambda: limiter.is_available)
    assert limiter.available_since > stopped_at


async def test_a_quiet_server_that_refuses_writes_is_noticed(own_probe: Probe) -> None:
    own_probe.redis.config_set("maxmemory", "1")

    await own_probe.until(lambda: not own_probe.limiter.is_available)

    own_probe.redis.config_set("maxmemory", "0")
    await own_probe.until(lambda: own_probe.limiter.is_available)


async def test_guards_do_not_mind_a_cold_server(own_redis: embedded_redis.RunningRedis) -> None:
    guards = Guards(own_redis.url, lambda: True, timeout_seconds=5.0)
    checks = [Check(Guard("registrations", 1, 60_000), "subject")]

    first, second = [await guards.admit(checks) for _ in range(2)]

    assert first.binding is None
    assert second.binding == checks[0]
    await guards.aclose()


class Moving:
    """A primary whose address changes."""

    def __init__(self, server: embedded_redis.RunningRedis) -> None:
        self.url = server.url
        self.port = server.port

    async def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


async def test_a_demoted_primary_is_left_for_the_new_one_which_is_cold(tmp_path: Path) -> None:
    old = embedded_redis.start(tmp_path / "old", password=PASSWORD)
    new = embedded_redis.start(tmp_path / "new", password=PASSWORD)
    target, tag = Moving(old), secrets.token_hex(6)
    await open_counters(target, tag)
    limiter = await Limiter.connect(target, hash_tag=tag)
    desk = CounterDesk(target, Keyspace(tag))
    try:
        await limiter.reserve("a", PLAN, Demand(1, 10), b"")
        await desk.client.replicaof("127.0.0.1", str(new.port))

        await until(lambda: limiter.state is BreakerState.OPEN)
        with pytest.raises(ReadOnlyError):
            await desk.run(OpenEpoch("an epoch for a replica"))

        # Cold or not: whoever starts on a replica must not wait for it.
        late = await Limiter.connect(old.url, hash_tag=secrets.token_hex(6))
        assert (late.state, late.is_cold) == (BreakerState.OPEN, False)
        await late.aclose(1.0)

        target.port = new.port
        await until(lambda: limiter.is_cold)
        assert await open_counters(target, tag) is not None
        await until(lambda: limiter.is_available)
        await limiter.reserve("b", PLAN, Demand(1, 20), b"")
        assert [each.held for each in await limiter.balances(PLAN)] == [20]
        # Also the desk's connections have moved.
        assert not await desk.is_cold()
    finally:
        await limiter.aclose(1.0)
        await desk.aclose()
        old.stop()
        new.stop()
