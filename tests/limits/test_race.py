"""Several processes spend one subject's limit at once; not one request too many passes."""

import secrets
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from dataplane.domain.quotas import LayerBalance
from dataplane.limits.desk import open_counters
from dataplane.limits.limiter import Limiter
from tests.limits import race
from tests.limits.race import Tally, Task


def tally_of(
    run: Callable[[Task], Tally], redis_url: str, hash_tag: str, processes: int, each: int
) -> tuple[int, Tally]:
    """Return the limit, two thirds of the requests, and what all processes saw together."""
    limit = processes * each * 2 // 3
    tasks = [Task(redis_url, hash_tag, number, each, limit) for number in range(processes)]
    # A fresh interpreter for each: no event loop or connection is inherited.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tallies = list(pool.map(run, tasks))
    admitted = sum(tally.admitted for tally in tallies)
    spent_nanousd = sum(tally.spent_nanousd for tally in tallies)
    return limit, Tally(admitted, spent_nanousd, sum((each.crossings for each in tallies), ()))


def assert_nothing_leaked(limit: int, tally: Tally, counted: int, spent_nanousd: int) -> None:
    assert tally.admitted == limit
    assert counted == limit
    assert spent_nanousd == tally.spent_nanousd


async def balances_of(redis_url: str, hash_tag: str, limit: int) -> tuple[LayerBalance, ...]:
    limiter = await Limiter.connect(redis_url, hash_tag=hash_tag, timeout_seconds=5.0)
    balances = await limiter.balances(race.plan(limit))
    await limiter.aclose(1.0)
    return balances


@pytest.mark.parametrize(
    ("processes", "each"),
    [(8, 250), pytest.param(8, 5_000, marks=pytest.mark.long)],
)
async def test_processes_that_race_for_a_limit_admit_exactly_the_limit(
    processes: int, each: int, redis_url: str
) -> None:
    hash_tag = secrets.token_hex(6)
    await open_counters(redis_url, hash_tag)

    limit, tally = tally_of(race.run_limiter, redis_url, hash_tag, processes, each)

    organization, requests, user, parallel = await balances_of(redis_url, hash_tag, limit)
    assert_nothing_leaked(limit, tally, requests.settled, user.settled)
    assert organization.settled == tally.spent_nanousd
    assert (organization.held, user.held, parallel.settled) == (0, 0, 0)
    # Whoever crossed it, it was told by one of them, once.
    assert tally.crossings == (80,)


async def test_a_check_before_an_increment_admits_too_many(redis_url: str) -> None:
    hash_tag = secrets.token_hex(6)

    limit, tally = tally_of(race.run_control, redis_url, hash_tag, 2, 250)

    with pytest.raises(AssertionError):
        assert_nothing_leaked(limit, tally, tally.admitted, tally.spent_nanousd)
    assert tally.admitted > limit
