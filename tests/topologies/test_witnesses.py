"""Asking servers that know where others are, some of which do not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from dataplane import embedded_redis
from dataplane.limits.witnesses import ASK_SECONDS, KEPT_SECONDS, Lookup, Question, Witnesses

NOBODY = "redis://127.0.0.1:1/0"


@asynccontextmanager
async def silence() -> AsyncIterator[str]:
    """A server that takes connections and never says anything."""

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in writers:
            writer.close()


def read_port(answer: Any, _host: str) -> int:
    return int(answer[b"port"])


ITS_PORT = Question(("CONFIG", "GET", "port"), read_port)


async def test_one_that_hangs_or_is_gone_keeps_nobody_from_an_answer(
    redis_server: embedded_redis.RunningRedis,
) -> None:
    async with silence() as silent:
        witnesses = Witnesses([silent, NOBODY, redis_server.url])
        for _ in range(2):
            # Within the 50 ms that a connect has, if this machine is not busy with others.
            assert await witnesses.ask(ITS_PORT) == redis_server.port


async def test_whoever_answered_is_asked_first_the_next_time(
    redis_server: embedded_redis.RunningRedis,
) -> None:
    async with silence() as silent:
        witnesses = Witnesses([silent, redis_server.url])
        await witnesses.ask(ITS_PORT)
        assert witnesses.urls == [redis_server.url, silent]

        witnesses.replace([NOBODY, silent, redis_server.url])
        assert witnesses.urls == [redis_server.url, NOBODY, silent]

        witnesses.replace([silent])
        assert witnesses.urls == [silent]


async def test_without_any_answer_the_failure_comes_soon() -> None:
    async with silence() as silent:
        async with asyncio.timeout(20 * ASK_SECONDS):
            with pytest.raises((RedisError, OSError)):
                await Witnesses([NOBODY, silent]).ask(ITS_PORT)
    with pytest.raises(RedisError):
        await Witnesses([]).ask(ITS_PORT)


async def test_a_server_without_an_answer_is_passed_over(
    redis_server: embedded_redis.RunningRedis,
) -> None:
    def read(answer: Any, host: str) -> None:
        assert host == "127.0.0.1"
        raise answer

    with pytest.raises(ResponseError, match="unknown command"):
        await Witnesses([NOBODY, redis_server.url]).ask(Question(("NONSENSE",), read))


async def test_many_that_want_the_same_answer_ask_once() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return asked

    lookup = Lookup(ask)
    first = asyncio.create_task(lookup.answer())
    await asyncio.sleep(0)
    # Whoever asked is cut off; the others still get the answer.
    first.cancel()
    answers = await asyncio.gather(*(lookup.answer() for _ in range(20)))

    assert answers == [1] * 20
    assert await lookup.answer() == 1


async def test_a_failure_is_not_kept() -> None:
    failures = [OSError("away")]

    async def ask() -> int:
        if failures:
            raise failures.pop()
        return 7

    lookup = Lookup(ask)
    with pytest.raises(OSError, match="away"):
        await lookup.answer()
    assert await lookup.answer() == 7


async def test_without_an_answer_in_time_the_last_one_is_taken() -> None:
    answers, may_answer = iter(range(9)), asyncio.Event()
    may_answer.set()

    async def ask() -> int:
        await may_answer.wait()
        answer = next(answers)
        if answer == 2:
            raise RedisError("nobody knows")
        return answer

    lookup = Lookup(ask)
    assert await lookup.answer() == 0
    lookup._answered_at -= KEPT_SECONDS
    may_answer.clear()
    assert await lookup.answer() == 0

    # The question went on, and its answer is there now; the next one has none.
    may_answer.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await lookup.answer() == 1
    lookup._answered_at -= KEPT_SECONDS
    assert await lookup.answer() == 1
