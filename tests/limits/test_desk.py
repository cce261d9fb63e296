"""The desk of whoever maintains the counters: it works while they are cold."""

import secrets
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError

from dataplane import embedded_redis
from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.periods import FOREVER_MS
from dataplane.limits.connection import is_epoch_of
from dataplane.limits.counters import SPEND, Keyspace
from dataplane.limits.desk import CounterDesk, open_counters
from dataplane.limits.operations import Find, Outcome
from dataplane.limits.upkeep import Correct


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[CounterDesk]:
    desk = CounterDesk(redis_url, Keyspace(secrets.token_hex(6)))
    yield desk
    await desk.aclose()


async def test_operations_run_in_order_however_many_they_are(desk: CounterDesk) -> None:
    spent = CounterName(SubjectKind.USER, "u_1", Unit.SPEND, Window.TOTAL, "total")
    key = desk.keyspace.counter_key(spent)
    raises = [Correct(key, SPEND, step, step + 1, 0, 0, FOREVER_MS) for step in range(150)]

    answers = await desk.run(*raises, Find("nobody"))

    assert [answer[0] for answer in answers] == [Outcome.OK] * 150 + [Outcome.GONE]
    assert await desk.client.hget(key, "s") == b"150"
    assert await desk.run() == []


async def test_an_epoch_is_opened_once_and_names_the_run_of_its_server(
    desk: CounterDesk, redis_url: str
) -> None:
    tag = secrets.token_hex(6)
    desk = CounterDesk(redis_url, Keyspace(tag))
    assert (await desk.epoch(), await desk.is_cold()) == (None, True)

    epoch = await open_counters(redis_url, tag)

    assert epoch is not None
    assert is_epoch_of(epoch.encode(), await desk.run_id())
    assert (await desk.epoch(), await desk.is_cold()) == (epoch, False)
    assert await open_counters(redis_url, tag) is None

    await desk.client.set(desk.keyspace.epoch, "epoch-of-another-run")
    assert await desk.is_cold()
    assert await open_counters(redis_url, tag) not in (None, epoch)
    await desk.aclose()


async def test_a_server_that_forgot_the_script_is_taught_it_again(
    own_redis: embedded_redis.RunningRedis,
) -> None:
    desk = CounterDesk(own_redis.url)
    await desk.run(Find("nobody"))
    await desk.client.script_flush()

    assert [answer[0] for answer in await desk.run(Find("nobody"))] == [Outcome.GONE]
    assert (await desk.exchange()).server_now_ms > 0
    await desk.aclose()


async def test_without_a_server_the_desk_says_so() -> None:
    desk = CounterDesk("redis://127.0.0.1:1")

    with pytest.raises(RedisError):
        await desk.run(Find("nobody"))

    await desk.aclose()
    with pytest.raises(ValueError, match="redis"):
        CounterDesk("https://127.0.0.1")
