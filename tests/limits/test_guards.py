"""Guards: the script against a model under a test clock, and the whole against a real server."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dataplane.domain.guards import Check, Guard, Verdict
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.embedded_redis import RunningRedis
from dataplane.limits import guards as subject
from dataplane.limits.counters import Keyspace
from dataplane.limits.guards import Guards, assemble_guard, guard_script
from dataplane.limits.script import Script
from tests.limits.script_runner import NOON_MS

_TEST_CLOCK = """
local function server_clock_ms()
  return tonumber(redis.call("GET", KEYS[1] .. ":test"))
end
"""
# Keys end by the real clock: these live for minutes, however busy the machine is.
SLOW = Guard("slow", burst=3, interval_ms=120_000)
WIDE = Guard("wide", burst=5, interval_ms=60_000)
SINGLE = Guard("single", burst=1, interval_ms=600_000)
HOUR_MS = 3_600_000


def script_under_test() -> Script:
    return assemble_guard(_TEST_CLOCK)


class Driver:
    """The script in a key space of its own, under a clock that the test sets."""

    def __init__(self, redis_url: str, script: Script | None = None) -> None:
        self.redis = redis.Redis.from_url(redis_url)
        self.keyspace = Keyspace(secrets.token_hex(6))
        self._script = script or script_under_test()
        self.now_ms = NOON_MS
        self.tick(0)

    def tick(self, by_ms: int) -> None:
        self.now_ms += by_ms
        self.redis.set(f"{self.keyspace.clock}:test", self.now_ms)

    def key(self, check: Check) -> str:
        return f"{self.keyspace.prefix}g:{check.guard.name}:{check.subject}"

    def admit(self, *checks: Check) -> tuple[int, int]:
        keys = [self.keyspace.clock, *map(self.key, checks)]
        figures = [n for each in checks for n in (each.guard.burst, each.guard.interval_ms)]
        packed: Any = self.redis.eval(self._script.text, len(keys), *keys, "epoch", *figures)
        binding, wait_ms = msgspec.msgpack.decode(packed)
        return binding, wait_ms

    def arrivals(self, checks: list[Check]) -> list[int | None]:
        values: Any = self.redis.mget(map(self.key, checks))
        return [None if value is None else int(value) for value in values]

    def ttl_ms(self, check: Check) -> int:
        ttl: Any = self.redis.pttl(self.key(check))
        return int(ttl)

    def close(self) -> None:
        for key in self.redis.scan_iter(f"{self.keyspace.prefix}*", count=1000):
            self.redis.delete(key)
        self.redis.close()


@dataclass
class Model:
    """GCRA in its own words: a call passes while the arrival is less than a burst ahead."""

    now_ms: int = 0
    arrivals: dict[Check, int] = field(default_factory=dict)
    passed: dict[Check, list[int]] = field(default_factory=dict)

    def see_clock(self, server_now_ms: int) -> None:
        self.now_ms = max(self.now_ms, server_now_ms)

    def wait_ms(self, check: Check) -> int:
        guard = check.guard
        used_up_ms = max(self.arrivals.get(check, 0) - self.now_ms, 0)
        return max(0, used_up_ms - (guard.burst - 1) * guard.interval_ms)

    def admit(self, *checks: Check) -> tuple[int, int]:
        waits = [self.wait_ms(check) for check in checks]
        longest = max(waits)
        if longest:
            return waits.index(longest) + 1, longest
        for check in checks:
            start = max(self.arrivals.get(check, 0), self.now_ms)
            self.arrivals[check] = start + check.guard.interval_ms
            self.passed.setdefault(check, []).append(self.now_ms)
        return 0, 0


CHECKS = [Check(guard, name) for guard in (SLOW, WIDE, SINGLE) for name in ("a", "b")]


class GuardMachine(RuleBasedStateMachine):
    """Script and model side by side; every answer and every key is compared."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self.driver, self.model = Driver(redis_url), Model()

    def teardown(self) -> None:
        self.driver.close()

    @rule(checks=st.lists(st.sampled_from(CHECKS), min_size=1, max_size=4, unique=True))
    def admit(self, checks: list[Check]) -> None:
        self.model.see_clock(self.driver.now_ms)
        assert self.driver.admit(*checks) == self.model.admit(*checks)

    @rule(
        by_ms=st.one_of(
            st.integers(-200_000, 900_000), st.sampled_from([1, -1, 59_999, 60_000, 120_000])
        )
    )
    def tick(self, by_ms: int) -> None:
        self.driver.tick(by_ms)

    @rule(check=st.sampled_from(CHECKS))
    def come_back_when_told(self, check: Check) -> None:
        """A caller that waits as long as it was told passes, and a millisecond earlier does not."""
        self.model.see_clock(self.driver.now_ms)
        binding, wait_ms = self.driver.admit(check)
        assert (binding, wait_ms) == self.model.admit(check)
        if binding:
            self.driver.tick(self.model.now_ms - self.driver.now_ms + wait_ms - 1)
            self.model.see_clock(self.driver.now_ms)
            assert self.driver.admit(check) == (1, 1) == self.model.admit(check)
            self.driver.tick(1)
            self.model.see_clock(self.driver.now_ms)
            assert self.driver.admit(check) == (0, 0) == self.model.admit(check)

    @invariant()
    def both_remember_the_same(self) -> None:
        assert self.driver.arrivals(CHECKS) == [self.model.arrivals.get(each) for each in CHECKS]

    @invariant()
    def no_window_sees_more_than_the_burst_and_the_rate(self) -> None:
        for check, passed in self.model.passed.items():
            burst, interval_ms = check.guard.burst, check.guard.interval_ms
            for first in range(len(passed) - burst):
                assert passed[first + burst] - passed[first] >= interval_ms


def test_the_script_and_the_model_agree(redis_url: str) -> None:
    class Machine(GuardMachine):
        def __init__(self) -> None:
            super().__init__(redis_url)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def driver(redis_url: str) -> Any:
    driver = Driver(redis_url)
    yield driver
    driver.close()


def _a_burst_passes_and_then_one_per_interval(driver: Driver) -> None:
    check = Check(SLOW, "a")
    assert [driver.admit(check) for _ in range(4)] == [(0, 0)] * 3 + [(1, 120_000)]
    driver.tick(119_999)
    assert driver.admit(check) == (1, 1)
    driver.tick(1)
    assert [driver.admit(check), driver.admit(check)] == [(0, 0), (1, 120_000)]
    driver.tick(10 * 120_000)
    assert [driver.admit(check)[0] for _ in range(4)] == [0, 0, 0, 1]


def _one_that_refuses_keeps_the_others_from_counting(driver: Driver) -> None:
    used_up, fresh = Check(SINGLE, "a"), Check(SLOW, "a")
    driver.admit(used_up)
    before = driver.arrivals([used_up])
    for order in ((used_up, fresh), (fresh, used_up)):
        assert driver.admit(*order) == (order.index(used_up) + 1, 600_000)
    assert driver.arrivals([used_up, fresh]) == [*before, None]


def _of_several_the_longest_wait_binds(driver: Driver) -> None:
    short, long = Check(Guard("short", 1, 60_000), "a"), Check(SINGLE, "a")
    driver.admit(short, long)
    assert driver.admit(short, long) == (2, 600_000)
    assert driver.admit(long, short) == (1, 600_000)
    again = Check(Guard("again", 1, 600_000), "a")
    driver.admit(again)
    assert driver.admit(again, long) == (1, 600_000)


def _a_clock_that_steps_back_opens_nothing(driver: Driver) -> None:
    check = Check(SINGLE, "a")
    driver.tick(HOUR_MS)
    driver.admit(check)
    driver.tick(-HOUR_MS)
    assert driver.admit(check) == (1, 600_000)
    # The key outlives the step: by the server's clock its instant is more than an hour away.
    assert driver.ttl_ms(check) > 500_000
    other = Check(SINGLE, "b")
    assert driver.admit(other) == (0, 0)
    assert HOUR_MS + 500_000 < driver.ttl_ms(other) <= HOUR_MS + 600_000


def _a_key_ends_with_what_it_says(driver: Driver) -> None:
    check = Check(SLOW, "a")
    driver.admit(check)
    driver.admit(check)
    assert 200_000 < driver.ttl_ms(check) <= 240_000
    assert driver.ttl_ms(Check(SLOW, "b")) == -2


CASES = (
    _a_burst_passes_and_then_one_per_interval,
    _one_that_refuses_keeps_the_others_from_counting,
    _of_several_the_longest_wait_binds,
    _a_clock_that_steps_back_opens_nothing,
    _a_key_ends_with_what_it_says,
)
MUTANTS = {
    "one more than the burst": ("local wait = arrival - burst", "local wait = arrival - (1 + burst)"),
    "one less than the burst": ("local wait = arrival - burst", "local wait = arrival - (burst - 1)"),
    "at its instant it is still refused": ("if wait > longest then", "if wait >= longest then"),
    "the clock goes back": ("local now = math.max(server_now,", "local now = math.min(server_now,"),
    "arrivals of the past count": ('or "0"), now) + interval', 'or "0"), 0) + interval'),
    "a refused call is counted": ("if binding > 0 then", "if false then"),
    "the first refusal binds": ("if wait > longest then", "if wait > 0 and binding == 0 then"),
    "a key ends by the limiter's clock": ("int(arrival - server_now)", "int(arrival - now)"),
    "a key never ends": (', "PX", int(arrival - server_now))', ")"),
    "the last check is not counted": (
        "for i, arrival in ipairs(arrivals) do\n",
        "arrivals[#arrivals] = nil\nfor i, arrival in ipairs(arrivals) do\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_the_script_at_its_edges(case: Any, driver: Driver) -> None:
    case(driver)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_in_the_script_does_not_go_unnoticed(mutant: str, redis_url: str) -> None:
    original, fault = MUTANTS[mutant]
    text = script_under_test().text
    assert text.count(original) == 1, "the script no longer says so"
    noticed = 0
    for case in CASES:
        driver = Driver(redis_url, Script.of(text.replace(original, fault)))
        try:
            case(driver)
        except (AssertionError, redis.ResponseError):
            noticed += 1
        finally:
            driver.close()
    assert noticed


@asynccontextmanager
async def guards_on(
    redis_url: str, hash_tag: str = "", timeout_seconds: float = 0.05
) -> AsyncIterator[Guards]:
    tag = hash_tag or secrets.token_hex(6)
    guards = Guards(redis_url, lambda: True, hash_tag=tag, timeout_seconds=timeout_seconds)
    try:
        yield guards
    finally:
        await guards.aclose()


async def test_a_guard_tells_which_check_binds_and_for_how_long(redis_url: str) -> None:
    own, everybody = Check(SLOW, "a"), Check(Guard("all", 100, 1_000), "all")
    async with guards_on(redis_url, timeout_seconds=5.0) as guards:
        for _ in range(3):
            assert await guards.admit((everybody, own)) == Verdict()
        verdict = await guards.admit((everybody, own))
    assert verdict.binding == own
    assert 110_000 < verdict.retry_after_ms <= 120_000


async def test_a_check_that_stands_there_twice_is_a_mistake(redis_url: str) -> None:
    async with guards_on(redis_url) as guards:
        with pytest.raises(ValueError, match="twice"):
            await guards.admit((Check(SLOW, "a"), Check(Guard("slow", 9, 9), "a")))


def race(redis_url: str, hash_tag: str, calls: int) -> int:
    """Ask from one process, many times at once; return how many passed."""

    async def passed() -> int:
        async with guards_on(redis_url, hash_tag, timeout_seconds=10.0) as guards:
            verdicts = await asyncio.gather(*(guards.admit(RACE) for _ in range(calls)))
        return sum(verdict.is_admitted for verdict in verdicts)

    return asyncio.run(passed())


RACE = (Check(Guard("own", 100, HOUR_MS), "a"), Check(Guard("all", 1_000, HOUR_MS), "all"))


def test_processes_that_race_pass_exactly_the_burst(redis_url: str) -> None:
    hash_tag = secrets.token_hex(6)
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        tallies = [pool.submit(race, redis_url, hash_tag, 200) for _ in range(3)]
        assert sum(tally.result() for tally in tallies) == 100
    # What `own` refused was not counted with `all`: from now to its arrival are 100 intervals.
    client = redis.Redis.from_url(redis_url)
    prefix = Keyspace(hash_tag).prefix
    arrivals: list[Any] = [client.get(f"{prefix}g:{name}") for name in ("own:a", "all:all")]
    client.close()
    assert arrivals[0] == arrivals[1]


async def test_a_stopped_redis_refuses_all_that_wait_in_time(own_redis: RunningRedis) -> None:
    async with guards_on(own_redis.url) as guards:
        assert (await guards.admit([Check(WIDE, "a")])).is_admitted
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            waiting = [guards.admit([Check(WIDE, "a")]) for _ in range(20)]
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            elapsed = time.monotonic() - started
        finally:
            own_redis.process.send_signal(signal.SIGCONT)
        assert all(isinstance(outcome, LimitsUnavailable) for outcome in outcomes)
        # 100 ms are promised; the rest is for a machine that is busy.
        assert 0.05 <= elapsed < 0.4
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await guards.admit([Check(WIDE, "b")])).is_admitted
                    break
                except LimitsUnavailable:
                    await asyncio.sleep(0.01)


async def test_a_connection_that_was_cut_while_idle_is_made_anew_within_the_call(
    own_redis: RunningRedis,
) -> None:
    client = redis.Redis.from_url(own_redis.url)
    async with guards_on(own_redis.url, timeout_seconds=5.0) as guards:
        await guards.admit([Check(SINGLE, "a")])
        client.client_kill_filter(_type="normal", skipme=True)
        client.script_flush()
        assert not (await guards.admit([Check(SINGLE, "a")])).is_admitted
    client.close()


async def test_a_caller_that_leaves_disturbs_nobody(redis_url: str) -> None:
    async with guards_on(redis_url, timeout_seconds=5.0) as guards:
        for turns in range(12):
            task = asyncio.create_task(guards.admit([Check(SINGLE, f"left-{turns}")]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            after = await guards.admit([Check(SINGLE, f"after-{turns}")])
            assert after == Verdict()
            await asyncio.gather(task, return_exceptions=True)
        assert (await guards.admit([Check(SINGLE, "after-0")])).binding is not None


async def test_while_the_limiter_knows_that_redis_is_away_nobody_asks(redis_url: str) -> None:
    is_available = False
    hash_tag = secrets.token_hex(6)
    guards = Guards(redis_url, lambda: is_available, hash_tag=hash_tag, timeout_seconds=5.0)
    with pytest.raises(LimitsUnavailable):
        await guards.admit([Check(SINGLE, "a")])
    is_available = True
    assert (await guards.admit([Check(SINGLE, "a")])).is_admitted
    await guards.aclose()


async def test_without_redis_a_check_is_refused() -> None:
    async with guards_on("redis://127.0.0.1:1") as guards:
        with pytest.raises(LimitsUnavailable):
            await guards.admit([Check(SINGLE, "a")])


async def test_only_so_many_wait(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MAX_WAITING", 5)
    async with guards_on(redis_url, timeout_seconds=5.0) as guards:
        asked = [guards.admit([Check(WIDE, str(number))]) for number in range(8)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(outcome, LimitsUnavailable) for outcome in outcomes) == 3
        assert (await guards.admit([Check(WIDE, "after")])).is_admitted


def test_production_asks_redis_for_the_time() -> None:
    assert 'redis.call("TIME")' in guard_script().text
    assert 'redis.call("TIME")' not in script_under_test().text
