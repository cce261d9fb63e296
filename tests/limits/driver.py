"""Drives the limiter's script directly, under a clock that the test sets.

The script is the one that production runs, with another `server_clock_ms`; operations
are packed and answers unpacked by production's own code.
"""

import secrets
from types import TracebackType
from typing import Any, Self  # Any: what the client library returns

import redis

from dataplane.domain.limiting import LayerPlan
from dataplane.limits.counters import Binder, BoundPlan, Keyspace
from dataplane.limits.operations import (
    Admit,
    Answer,
    Balance,
    Find,
    Heartbeat,
    Operation,
    Outcome,
    Reap,
    Release,
    Reply,
    Settle,
    decode,
    encode,
)
from dataplane.limits.script import Script, assemble

_TEST_CLOCK = """
local function server_clock_ms()
  return tonumber(redis.call("GET", KEYS[CLOCK_KEY] .. ":test"))
end
"""
EPOCH = b"epoch of the test"
# 21 November 2026, 12:00 UTC: the start of a slot, far from the end of a day.
NOON_MS = 1_795_262_400_000


def script_under_test() -> Script:
    return assemble(_TEST_CLOCK)


class Driver:
    """One key space, one clock, and the operations as plain calls."""

    def __init__(self, redis_url: str, script: Script | None = None, now_ms: int = NOON_MS) -> None:
        self.redis = redis.Redis.from_url(redis_url)
        self.keyspace = Keyspace(secrets.token_hex(6))
        self._binder = Binder(self.keyspace)
        self._script = script or script_under_test()
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
        for key in self.redis.scan_iter(f"{self.keyspace.prefix}*", count=1000):
            self.redis.delete(key)
        self.redis.close()

    def set_clock(self, server_now_ms: int) -> None:
        """Set the server's clock; it may go back."""
        self.server_now_ms = server_now_ms
        self.redis.set(f"{self.keyspace.clock}:test", server_now_ms)

    def tick(self, by_ms: int) -> None:
        self.set_clock(self.server_now_ms + by_ms)

    def call(self, *operations: Operation, epoch: bytes = EPOCH) -> Reply:
        """Run one batch."""
        keys, arguments = encode(operations, self.keyspace)
        words: list[str | bytes] = [*keys, epoch, *arguments]
        try:
            packed = self.redis.evalsha(self._script.digest, len(keys), *words)
        except redis.exceptions.NoScriptError:
            packed = self.redis.eval(self._script.text, len(keys), *words)
        assert isinstance(packed, bytes)
        reply = decode(packed)
        self.limiter_now_ms = reply.now_ms
        for operation, answer in zip(operations, reply.answers, strict=True):
            assert answer[0] != Outcome.FAULT, (operation, answer)
        return reply

    def bind(self, plan: LayerPlan, now_ms: int | None = None) -> BoundPlan:
        """Bind as the limiter does, by limiter time, or by a clock that is wrong."""
        believed = max(self.limiter_now_ms, self.server_now_ms) if now_ms is None else now_ms
        return self._binder.bind(plan, believed)

    def admission(
        self,
        request_id: str,
        plan: LayerPlan,
        tokens: int = 1,
        cost: int = 1,
        bound: BoundPlan | None = None,
        not_after_ms: int | None = None,
    ) -> Admit:
        """Return an admit that is ready to go, and remember its keys."""
        bound = bound or self.bind(plan)
        self._bound.setdefault(request_id, bound)
        deadline = self.server_now_ms + 100 if not_after_ms is None else not_after_ms
        return Admit(request_id, plan, bound, tokens, cost, b"\x00meta\xff", deadline)

    def admit(
        self,
        request_id: str,
        plan: LayerPlan,
        tokens: int = 1,
        cost: int = 1,
        bound: BoundPlan | None = None,
        not_after_ms: int | None = None,
        epoch: bytes = EPOCH,
    ) -> Answer:
        operation = self.admission(request_id, plan, tokens, cost, bound, not_after_ms)
        return self.call(operation, epoch=epoch).answers[0]

    def settle(self, request_id: str, tokens: int = 1, cost: int = 1) -> Answer:
        bound = self._bound.get(request_id)
        return self.call(Settle(request_id, tokens, cost, bound)).answers[0]

    def release(self, request_id: str) -> Answer:
        return self.call(Release(request_id, self._bound.get(request_id))).answers[0]

    def heartbeat(self, request_id: str) -> Answer:
        return self.call(Heartbeat(request_id, self._bound[request_id])).answers[0]

    def reap(self, request_id: str) -> Answer:
        found = self.call(Find(request_id)).answers[0]
        keys = found[1] if found[0] == Outcome.OK else []
        return self.call(Reap(request_id, keys)).answers[0]

    def balances(self, *plans: LayerPlan) -> list[tuple[int, int]]:
        """Return (settled, held) per layer of the plans."""
        return self.balances_and_resets(*plans)[0]

    def resets(self, *plans: LayerPlan) -> list[int]:
        """Return when each layer of the plans is whole again; 0 for never."""
        return self.balances_and_resets(*plans)[1]

    def balances_and_resets(self, *plans: LayerPlan) -> tuple[list[tuple[int, int]], list[int]]:
        """Return what `balances` and `resets` return, of one instant."""
        answers = self.call(*(Balance(self.bind(plan)) for plan in plans)).answers
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
        members: Any = self.redis.zrange(self.keyspace.leases, 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in members}
