"""Every Redis key of the limiter and its lifetime.

    tk:1:{g}:<kind>:<layer>:<subject>[:<period>][.<reset generation>]

`1` is the version of the layout and `{g}` the hash tag that keeps all keys of one
script on one shard. The period is part of the key, so a new day needs no reset.
"""

from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from dataplane.domain.limiting import Layer, LayerKind, LayerPlan, Unit, Window
from dataplane.domain.periods import FOREVER_MS, Calendar

LEASE_MS: Final = 30_000
# Until another node reaps what a dead one left, that node settles it when it restarts:
# a reservation that expired before would leave its hold behind.
RESERVATION_MS: Final = 24 * 3_600_000
# A late settle corrects what a reaper charged for this long.
REAPED_MS: Final = 3_600_000
# Longer than any admit can be under way.
TOMBSTONE_MS: Final = 60_000
# Settles of the last requests of a period arrive after its end.
PERIOD_GRACE_MS: Final = 3 * 86_400_000
# A rolling window is counted in this many slots, and the partly expired one in full.
SLOTS: Final = 12

DEFAULT_HASH_TAG: Final = "g"

_WINDOW_MS: Final = {Window.MINUTE: 60_000}

# Kinds of counter as the script knows them; `script.py` hands it the same numbers.
ROLLING_REQUESTS: Final = 1
ROLLING_TOKENS: Final = 2
PERIOD_REQUESTS: Final = 3
PERIOD_TOKENS: Final = 4
SPEND: Final = 5
PARALLEL: Final = 6

_CODES: Final = {
    (LayerKind.ROLLING, Unit.REQUESTS): ROLLING_REQUESTS,
    (LayerKind.ROLLING, Unit.TOKENS): ROLLING_TOKENS,
    (LayerKind.PERIOD, Unit.REQUESTS): PERIOD_REQUESTS,
    (LayerKind.PERIOD, Unit.TOKENS): PERIOD_TOKENS,
    (LayerKind.SPEND, Unit.SPEND): SPEND,
    (LayerKind.PARALLEL, Unit.PARALLEL): PARALLEL,
}
_ENCODER: Final = msgspec.msgpack.Encoder()


class Keyspace:
    """Names the keys under one hash tag."""

    def __init__(self, hash_tag: str = DEFAULT_HASH_TAG) -> None:
        self.prefix = f"tk:1:{{{hash_tag}}}:"
        self.clock = f"{self.prefix}clk"
        self.epoch = f"{self.prefix}epoch"
        self.leases = f"{self.prefix}leases"

    def reservation(self, request_id: str) -> str:
        """Return the key of a request's reservation or tombstone."""
        return f"{self.prefix}r:{request_id}"

    def counter(self, layer: Layer, period_id: str = "") -> str:
        """Return the key of a layer's counter, in a period if it has periods."""
        period = f":{period_id}" if period_id else ""
        generation = f".{layer.reset_generation}" if layer.reset_generation else ""
        return f"{self.prefix}{layer.kind}:{layer.name}:{layer.subject_id}{period}{generation}"


@dataclass(frozen=True, slots=True, eq=False)
class BoundPlan:
    """A plan with its keys, as it can be sent until the first of its periods ends.

    It does not hold the plan: the memory of `Binder` ends with the plan.

    Attributes:
        keys: Counters in the plan's order; a layer that has a next period has two.
        parallel_keys: Those of `keys` that are sets of requests in flight.
        period_ids: Per layer its period and the next one; empty for layers without.
        packed: The layers as the admit script reads them.
        valid_from_ms: Limiter time from which the first periods run.
        valid_until_ms: Limiter time at which the first of them ends.
    """

    keys: tuple[str, ...]
    parallel_keys: tuple[str, ...]
    period_ids: tuple[tuple[str, str], ...]
    packed: msgspec.Raw
    valid_from_ms: int
    valid_until_ms: int


class Binder:
    """Gives plans their keys, and remembers them as long as they are right."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._calendar = Calendar()
        self._bound: WeakKeyDictionary[LayerPlan, BoundPlan] = WeakKeyDictionary()

    def bind(self, plan: LayerPlan, now_ms: int) -> BoundPlan:
        """Return `plan` bound to the periods of `now_ms`, limiter time.

        Raises:
            zoneinfo.ZoneInfoNotFoundError: A layer names a zone that does not exist.
        """
        known = self._bound.get(plan)
        if known is not None and known.valid_from_ms <= now_ms < known.valid_until_ms:
            return known
        fresh = self._bind(plan, now_ms)
        self._bound[plan] = fresh
        return fresh

    def _bind(self, plan: LayerPlan, now_ms: int) -> BoundPlan:
        keys: list[str] = []
        parallel_keys: list[str] = []
        period_ids: list[tuple[str, str]] = []
        packed: list[tuple[int, ...]] = []
        valid_from_ms, valid_until_ms = 0, FOREVER_MS
        for layer in plan.layers:
            head = (_CODES[layer.kind, layer.unit], len(keys), layer.capacity, int(layer.is_shadow))
            if layer.kind is LayerKind.ROLLING:
                keys.append(self._keyspace.counter(layer))
                period_ids.append(("", ""))
                packed.append((*head, _WINDOW_MS[layer.window] // SLOTS))
            elif layer.kind is LayerKind.PARALLEL:
                keys.append(self._keyspace.counter(layer))
                parallel_keys.append(keys[-1])
                period_ids.append(("", ""))
                packed.append(head)
            else:
                periods = self._calendar.at(layer.window, layer.time_zone, now_ms)
                keys.append(self._keyspace.counter(layer, periods.period_id))
                if periods.next_id != periods.period_id:
                    keys.append(self._keyspace.counter(layer, periods.next_id))
                period_ids.append((periods.period_id, periods.next_id))
                packed.append((*head, periods.start_ms, periods.end_ms, periods.next_end_ms))
                valid_from_ms = max(valid_from_ms, periods.start_ms)
                valid_until_ms = min(valid_until_ms, periods.end_ms)
        return BoundPlan(
            keys=tuple(keys),
            parallel_keys=tuple(parallel_keys),
            period_ids=tuple(period_ids),
            packed=msgspec.Raw(_ENCODER.encode(packed)),
            valid_from_ms=valid_from_ms,
            valid_until_ms=valid_until_ms,
        )
