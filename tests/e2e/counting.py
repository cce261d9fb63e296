"""What the counters in Redis say, read beside the programs that count."""

import contextlib
from typing import Any

import redis

from dataplane.domain.counters import CounterName
from dataplane.limits.counters import Keyspace, layer_name
from tests.e2e.stack import Stack


class Counters(contextlib.AbstractContextManager["Counters"]):
    """Reads counters by layer and subject; each read is one step."""

    def __init__(self, stack: Stack) -> None:
        """Connect to the Redis of `stack`; a restarted one is connected to again."""
        self._redis: redis.Redis = redis.Redis.from_url(
            stack.line["redis_url"], decode_responses=True
        )
        self._keyspace = Keyspace()

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def spend(self, layer: str, subject_id: str) -> tuple[int, int]:
        """Return what a budget has settled and what it holds, in nano-USD; it must have begun."""
        settled, held = self._redis.hmget(self._key(layer, subject_id), ["s", "h"])
        return int(settled or 0), int(held or 0)

    def count(self, layer: str, subject_id: str) -> int:
        """Return what a quota has counted; it must have begun."""
        return int(self._redis.get(self._key(layer, subject_id)) or 0)

    def slots(self, layer: str, subject_id: str) -> dict[int, int]:
        """Return what a rolling window has counted in each of its slots, by their numbers."""
        found = self._redis.hgetall(self._key(layer, subject_id))
        return {int(slot): int(amount) for slot, amount in found.items()}

    def has_begun(self, layer: str, subject_id: str) -> bool:
        """Return whether a layer has counted anything of a subject."""
        return bool(self._counters(layer, subject_id))

    def in_flight(self) -> int:
        """Return how many requests hold a reservation."""
        return int(self._redis.zcard(self._keyspace.leases))

    def now_s(self) -> float:
        """Return the time of Redis, in Unix seconds."""
        seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def server(self) -> dict[str, Any]:
        """Return what the server says about itself."""
        about: dict[str, Any] = self._redis.info("server")
        return about

    def _key(self, layer: str, subject_id: str) -> str:
        counters = self._counters(layer, subject_id)
        assert counters, f"nothing counts {layer} of {subject_id}"
        # A reset counter has a key for each generation: the newest one counts.
        newest = max(counters, key=lambda each: (each.period_id, each.reset_generation))
        return self._keyspace.counter_key(newest)

    def _counters(self, layer: str, subject_id: str) -> list[CounterName]:
        pattern = f"{self._keyspace.prefix}*:{subject_id}*"
        keys = map(str, self._redis.scan_iter(match=pattern, count=1_000))
        return [
            each
            for each in map(self._keyspace.parse_counter, keys)
            if each and (layer_name(each), each.subject_id) == (layer, subject_id)
        ]
