"""How much of Redis' memory one active user takes: one who called in every slot of the last minute."""

import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import redis

from dataplane.domain.limiting import LayerPlan
from dataplane.limits.counters import DEFAULT_HASH_TAG
from dataplane.limits.operations import Admit, Outcome, Settle
from tests.limits.driver import Driver
from tests.limits.plans import SLOT_MS, WINDOW_MS
from tests.load.layers import ten_layers_of_one

LAYERS: Final = 10
# A window covers so many slots, and part of one more.
_SLOTS: Final = WINDOW_MS // SLOT_MS + 1
_AT_ONCE: Final = 50
_TOKENS: Final = 1_000
_NANOUSD: Final = 1_000_000
_REWRITE_S: Final = 60.0
_POLL_S: Final = 0.05
_REWRITING: Final = ("scheduled", "in_progress")


class Footprint(msgspec.Struct, frozen=True):
    """Bytes per user, who has ten layers of its own and nothing in flight.

    Attributes:
        counters: Of its keys and what they hold, by the server's own estimate (MEMORY USAGE).
        server: What the server's memory grew by (`used_memory`), with its tables of keys and of
            lifetimes. They grow by doubling: users are cheapest right before they do.
        counted_keys: How many keys a user has.
    """

    counters: float
    server: float
    counted_keys: float


def footprint(redis_url: str, users: int) -> Footprint:
    """Let `users` call in each slot of a minute, and measure; the server is nobody else's meanwhile.

    The calls go through the script, by a clock that is set on, and count under production's keys.
    Redis is as before afterwards.

    Raises:
        redis.RedisError: It does not answer.
        TimeoutError: It did not come to an end of rewriting its file.
        RuntimeError: A call was not admitted.
    """
    with Driver(redis_url, hash_tag=DEFAULT_HASH_TAG) as driver:
        plans = [ten_layers_of_one(number) for number in range(users)]
        # With the script loaded.
        _call(driver, plans[:1], slot=0)
        before = _used(driver.redis)
        for slot in range(1, _SLOTS + 1):
            driver.tick(SLOT_MS)
            for start in range(0, users, _AT_ONCE):
                _call(driver, plans[start : start + _AT_ONCE], slot)
        server = _used(driver.redis) - before
        sizes = list(_sizes(driver))
    return Footprint(sum(sizes) / users, server / users, len(sizes) / users)


def _call(driver: Driver, plans: Sequence[LayerPlan], slot: int) -> None:
    """Let each of the plans' users make one call, from its admission to its settlement."""
    admits: list[Admit] = [
        driver.admission(f"{slot:04d}-{index}", plan, _TOKENS, _NANOUSD)
        for index, plan in enumerate(plans)
    ]
    settles = [Settle(each.request_id, _TOKENS, _NANOUSD, each.bound) for each in admits]
    for answer in driver.call(*admits, *settles).answers:
        if answer[0] != Outcome.OK:
            raise RuntimeError(f"a call was not counted: {answer!r}")


def _used(client: redis.Redis) -> int:
    deadline = time.monotonic() + _REWRITE_S
    # Older servers hold back in memory what is written while their file is rewritten.
    while any(client.info("persistence")[f"aof_rewrite_{each}"] for each in _REWRITING):
        if time.monotonic() > deadline:
            raise TimeoutError("the server's file is still being rewritten")
        time.sleep(_POLL_S)
    # Whole batches are slow, and the log of slow calls keeps their arguments.
    client.slowlog_reset()
    return int(client.info("memory")["used_memory"])


def _sizes(driver: Driver) -> Iterator[int]:
    """Yield the bytes of every counter."""
    keys = [
        key
        for key in driver.redis.scan_iter(f"{driver.keyspace.prefix}*", count=1000)
        if driver.keyspace.parse_counter(key.decode()) is not None
    ]
    for start in range(0, len(keys), 1000):
        # Every field of a hash is looked at, not five of them.
        pipeline = driver.redis.pipeline(transaction=False)
        for key in keys[start : start + 1000]:
            pipeline.memory_usage(key, samples=0)
        yield from map(int, pipeline.execute())
