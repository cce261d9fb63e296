"""Runs the limiter's script directly, under a clock that the test sets.

The script is the one that production runs, with another `server_clock_ms`; operations
are packed and answers unpacked by production's own code.
"""

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self  # Any: what the client library returns

import redis

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan
from dataplane.domain.periods import Periods, periods_at
from dataplane.domain.principals import Principal
from dataplane.limits.counters import Binder, BoundPlan, Keyspace
from dataplane.limits.operations import Answer, Balance, Operation, Outcome, Reply, decode, encode
from dataplane.limits.script import Script, assemble, source

_TEST_CLOCK = """
local function server_clock_ms()
  return tonumber(redis.call("GET", KEYS[CLOCK_KEY] .. ":test"))
end
"""
EPOCH = "epoch of the test"
# 21 November 2026, 12:00 UTC: the start of a slot, far from the end of a day.
NOON_MS = 1_795_262_400_000


class ScriptFaultError(Exception):
    """The script met something it does not understand: no way for a mutant to be noticed."""


def script_under_test() -> Script:
    return assemble(_TEST_CLOCK)


def source_under_test() -> str:
    """Return the text of the script as it is written, for mutants of it."""
    return source(_TEST_CLOCK)


class ScriptRunner:
    """One key space, one clock, and what stands behind the answers."""

    def __init__(
        self,
        redis_url: str,
        script: Script | None = None,
        now_ms: int = NOON_MS,
        hash_tag: str = "",
    ) -> None:
        """Open the counters under `hash_tag`, one that nobody else has unless given."""
        self.redis = redis.Redis.from_url(redis_url)
        self.keyspace = Keyspace(hash_tag or secrets.token_hex(6))
        self._binder = Binder(self.keyspace)
        self._script = script or script_under_test()
        self.epoch = EPOCH
        self.redis.set(self.keyspace.epoch, EPOCH)
        self.limiter_now_ms = now_ms
        self.server_now_ms = now_ms
        self.set_clock(now_ms)
        self._bound: dict[str, BoundPlan] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop(lambda _: True)
        self.redis.close()

    def set_clock(self, server_now_ms: int) -> None:
        """Set the server's clock; it may go back."""
        self.server_now_ms = server_now_ms
        self.redis.set(f"{self.keyspace.clock}:test", server_now_ms)

    def tick(self, by_ms: int) -> None:
        self.set_clock(self.server_now_ms + by_ms)

    def call(self, *operations: Operation, epoch: str | None = None) -> Reply:
        """Run one batch."""
        keys, arguments = encode(operations, self.keyspace)
        words: list[str | bytes] = [*keys, self.epoch if epoch is None else epoch, *arguments]
        try:
            packed = self.redis.evalsha(self._script.digest, len(keys), *words)
        except redis.exceptions.NoScriptError:
            packed = self.redis.eval(self._script.text, len(keys), *words)
        assert isinstance(packed, bytes)
        reply = decode(packed)
        self.limiter_now_ms = reply.now_ms
        for operation, answer in zip(operations, reply.answers, strict=True):
            if answer[0] == Outcome.FAULT:
                raise ScriptFaultError(operation, answer)
        return reply

    def ask(self, operation: Operation) -> Answer:
        """Run one operation and return its answer."""
        return self.call(operation).answers[0]

    def open_epoch_now(self) -> str:
        """Return the counter epoch that is open; empty while the counters are cold."""
        epoch = self.redis.get(self.keyspace.epoch)
        assert epoch is None or isinstance(epoch, bytes)
        return (epoch or b"").decode()

    def bind(
        self, plan: LayerPlan, now_ms: int | None = None, principal: Principal | None = None
    ) -> BoundPlan:
        """Bind as the limiter does, by limiter time, or by a clock that is wrong."""
        believed = max(self.limiter_now_ms, self.server_now_ms) if now_ms is None else now_ms
        return self._binder.bind(plan, believed, principal)

    def counter_key(self, layer: Layer, at_ms: int | None = None) -> str:
        """Return the key of a layer's counter, of the period of `at_ms` (now)."""
        periods = self._periods(layer, at_ms)
        return self.keyspace.counter(layer, periods.period_id if periods else "")

    def ends_ms(self, layer: Layer, at_ms: int | None = None) -> int:
        """Return when the period of `at_ms` (now) ends; 0 for a layer without."""
        periods = self._periods(layer, at_ms)
        return periods.end_ms if periods else 0

    def _periods(self, layer: Layer, at_ms: int | None) -> Periods | None:
        if layer.kind not in (LayerKind.PERIOD, LayerKind.SPEND):
            return None
        now_ms = max(self.limiter_now_ms, self.server_now_ms)
        return periods_at(layer.window, layer.time_zone, now_ms if at_ms is None else at_ms)

    def balances(self, *plans: LayerPlan) -> list[tuple[int, int]]:
        """Return (settled, held) per layer of the plans."""
        return self.balances_and_resets(*plans)[0]

    def resets(self, *plans: LayerPlan) -> list[int]:
        """Return when each layer of the plans is whole again; 0 for never."""
        return self.balances_and_resets(*plans)[1]

    def balances_and_resets(self, *plans: LayerPlan) -> tuple[list[tuple[int, int]], list[int]]:
        """Return what `balances` and `resets` return, of one instant, whatever epoch is open."""
        asks = [Balance(self.bind(plan)) for plan in plans]
        answers = self.call(*asks, epoch=self.open_epoch_now()).answers
        assert [answer[0] for answer in answers] == [Outcome.OK] * len(plans)
        flat = [amount for answer in answers for amount in answer[3]]
        resets = [instant for answer in answers for instant in answer[4]]
        return list(zip(flat[::2], flat[1::2], strict=True)), resets

    def reservations(self) -> set[str]:
        """Return the requests that have a reservation or a tombstone."""
        prefix = self.keyspace.reservation("")
        keys = self.redis.scan_iter(f"{prefix}*", count=1000)
        return {key.decode().removeprefix(prefix) for key in keys}

    def leases(self) -> dict[str, int]:
        return self._members(self.keyspace.leases)

    def listed(self) -> dict[str, int]:
        """Return the reaped requests that nobody has reported, with the time of the reaping."""
        return self._members(self.keyspace.reaped)

    def _members(self, key: str) -> dict[str, int]:
        members: Any = self.redis.zrange(key, 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in members}

    def wipe(self) -> None:
        """Lose everything but the clock of the test, as a server that lost its data."""
        self.limiter_now_ms = self.server_now_ms
        self._drop(lambda key: not key.endswith(b":test"))

    def _drop(self, is_dropped: Callable[[bytes], bool]) -> None:
        keys = self.redis.scan_iter(f"{self.keyspace.prefix}*", count=1000)
        dropped = [key for key in keys if is_dropped(key)]
        if dropped:
            self.redis.delete(*dropped)
