"""Every Redis key of the limiter and its lifetime.

    tk:1:{g}:<kind>:<layer>:<subject>[:<period>][.<reset generation>]

`1` is the version of the layout and `{g}` the hash tag that keeps all keys of one
script on one shard. The layer is written in three letters, one each for its subject, unit and
window (`urm` is `user_requests_per_minute`; `o` is a month): in full, names would be a tenth of what
an active user takes of Redis' memory. The period is part of the key, so a new day needs no reset.
Subjects may hold `:` and `.` (`gpt-4.1`, `ft:gpt-4o:acme`), so a key is read from both ends.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import (
    Layer,
    LayerKind,
    LayerPlan,
    SubjectKind,
    Unit,
    Window,
)
from dataplane.domain.periods import FOREVER_MS, Calendar
from dataplane.domain.principals import Principal
from dataplane.domain.revocations import ORGANIZATION, USER

# With a round of the reaper, what a dead process held is free within 30 s.
LEASE_MS: Final = 25_000
# A slot belongs to its request until that is settled, released or reaped: after an outage that
# outlasts leases live streams go on, and nobody else may have their slots. Where nobody reaps, and
# an outage lasts longer than this, a slot is free so long after its lease ran out.
SLOT_GRACE_MS: Final = 3_600_000
# A late settle corrects what a reaper charged for this long after its record was acknowledged.
REAPED_MS: Final = 3_600_000
# Until then the record is kept for so long: whoever reports it needs its meta.
UNREPORTED_MS: Final = 3 * 86_400_000
# Longer than any node goes without a control plane and is still used. A node that has not heard of a
# revocation by then has no mark to stop it.
MARK_MS: Final = 7 * 86_400_000
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
RATE: Final = 7
SOFT_SPEND: Final = 8

# Both kinds of spend count in the same hash; a soft one holds what is expected.
SPEND_CODES: Final = frozenset({SPEND, SOFT_SPEND})

# A packed plan has for each layer: code, offset of its key, capacity, whether it is a shadow, and
# three more that its kind needs (else 0).
LAYER_FIELDS: Final = 7
# A record lists a counter as code, key, amount, slot of a rolling window or capacity of a
# budget (negative: a shadow one; else 0), and the limiter time at which it ends (or 0).
COUNTER_FIELDS: Final = 5

# So far ahead a rate counts, whatever its burst: 142 years, in microseconds. Its arrival times
# stay exact to the unit.
_MOST_AHEAD_US: Final = 2**52

_CODES: Final = {
    (LayerKind.RATE, Unit.REQUESTS): RATE,
    (LayerKind.ROLLING, Unit.REQUESTS): ROLLING_REQUESTS,
    (LayerKind.ROLLING, Unit.TOKENS): ROLLING_TOKENS,
    (LayerKind.PERIOD, Unit.REQUESTS): PERIOD_REQUESTS,
    (LayerKind.PERIOD, Unit.TOKENS): PERIOD_TOKENS,
    (LayerKind.SPEND, Unit.SPEND): SPEND,
    (LayerKind.PARALLEL, Unit.PARALLEL): PARALLEL,
}
# How keys write a layer. They are for ever: other letters would be other counters.
_SUBJECT_LETTERS: Final = {
    SubjectKind.GLOBAL: "g",
    SubjectKind.ORGANIZATION: "o",
    SubjectKind.USER: "u",
    SubjectKind.KEY: "k",
    SubjectKind.DEVICE: "d",
    SubjectKind.IP: "i",
    SubjectKind.ENDPOINT: "e",
    SubjectKind.MODEL: "m",
}
_UNIT_LETTERS: Final = {
    Unit.REQUESTS: "r",
    Unit.TOKENS: "t",
    Unit.SPEND: "s",
    Unit.PARALLEL: "p",
}
_WINDOW_LETTERS: Final = {
    Window.RATE: "r",
    Window.MINUTE: "m",
    Window.DAY: "d",
    Window.MONTH: "o",
    Window.TOTAL: "t",
    Window.NONE: "n",
}
_ENCODER: Final = msgspec.msgpack.Encoder()

_CALENDAR_KINDS: Final = frozenset({LayerKind.PERIOD, LayerKind.SPEND})


def _layers() -> Iterator[Layer]:
    """Yield a layer of every subject, unit and window that go together."""
    windows: dict[Unit, tuple[Window, ...]] = {
        Unit.REQUESTS: (Window.RATE, Window.MINUTE, Window.DAY, Window.MONTH, Window.TOTAL),
        Unit.TOKENS: (Window.MINUTE, Window.DAY, Window.MONTH, Window.TOTAL),
        Unit.SPEND: (Window.DAY, Window.MONTH, Window.TOTAL),
        Unit.PARALLEL: (Window.NONE,),
    }
    for subject in SubjectKind:
        for unit in windows:
            for window in windows[unit]:
                every_ms = 1000 if window is Window.RATE else 0
                yield Layer(subject, "", unit, window, 1, every_ms=every_ms)


def _letters(layer: Layer | CounterName) -> str:
    """Return how keys write a layer."""
    subject, unit = _SUBJECT_LETTERS[layer.subject_kind], _UNIT_LETTERS[layer.unit]
    return f"{subject}{unit}{_WINDOW_LETTERS[layer.window]}"


_LAYERS: Final = {(each.subject_kind, each.unit, each.window): each for each in _layers()}
_LAYERS_BY_LETTERS: Final = {_letters(each): each for each in _LAYERS.values()}
# A period of a calendar counter and its reset generation, at the end of its key.
_PERIOD_TAIL: Final = re.compile(r"(\d{6}|\d{8}|total)(?:\.([1-9]\d*))?", re.ASCII)
# What a reset generation looks like at the end of a key without a period.
_GENERATION_TAIL: Final = re.compile(r"\.(0|[1-9]\d*)\Z", re.ASCII)


def layer_kind(name: CounterName) -> LayerKind:
    """Return the algorithm that counts a counter."""
    return _LAYERS[name.subject_kind, name.unit, name.window].kind


def layer_name(name: CounterName) -> str:
    """Return the public name of a counter's layer, such as `user_requests_per_day`."""
    return _LAYERS[name.subject_kind, name.unit, name.window].name


def counter_code(name: CounterName) -> int:
    """Return the kind of a counter as the script knows it; every budget is `SPEND` here."""
    return _CODES[layer_kind(name), name.unit]


class Keyspace:
    """Names the keys under one hash tag."""

    def __init__(self, hash_tag: str = DEFAULT_HASH_TAG) -> None:
        self.prefix = f"tk:1:{{{hash_tag}}}:"
        self.clock = f"{self.prefix}clk"
        self.epoch = f"{self.prefix}epoch"
        self.leases = f"{self.prefix}leases"
        self.reaped = f"{self.prefix}reaped"
        self.maintenance = f"{self.prefix}maint"
        self.fence = f"{self.prefix}fence"
        self.nodes = f"{self.prefix}nodes"
        self.rebuild = f"{self.prefix}rebuild"

    def reservation(self, request_id: str) -> str:
        """Return the key of a request's reservation or tombstone."""
        return f"{self.prefix}r:{request_id}"

    def mark(self, kind: str, subject_id: str) -> str:
        """Return the key that says that a key, device, user or organization was revoked."""
        return f"{self.prefix}x:{kind}:{subject_id}"

    def marks(self, principal: Principal) -> tuple[str, str, str]:
        """Return the keys that say that a caller was revoked: its credential's comes first."""
        user = principal.user
        return (
            self.mark(principal.kind, principal.principal_id),
            self.mark(USER, user.user_id),
            self.mark(ORGANIZATION, user.organization.organization_id),
        )

    def counter(self, layer: Layer, period_id: str = "") -> str:
        """Return the key of a layer's counter, in a period if it has periods."""
        return self._key(layer.kind, layer, period_id)

    def counter_key(self, name: CounterName) -> str:
        """Return the key of the counter that is called so."""
        return self._key(layer_kind(name), name, name.period_id)

    def parse_counter(self, key: str) -> CounterName | None:
        """Return what a key says, or None when it is no counter of this key space.

        The period is empty for counters that have none: rates, rolling windows, parallel sets.
        """
        if not key.startswith(self.prefix):
            return None
        kind, _, rest = key[len(self.prefix) :].partition(":")
        letters, separator, tail = rest.partition(":")
        layer = _LAYERS_BY_LETTERS.get(letters)
        if layer is None or not separator or layer.kind != kind:
            return None
        subject_kind, unit, window = layer.subject_kind, layer.unit, layer.window
        if kind in _CALENDAR_KINDS:
            subject_id, separator, period = tail.rpartition(":")
            match = _PERIOD_TAIL.fullmatch(period)
            if match is None or not separator:
                return None
            generation = int(match[2] or 0)
            return CounterName(subject_kind, subject_id, unit, window, match[1], generation)
        match = _GENERATION_TAIL.search(tail)
        generation = int(match[1]) if match else 0
        subject_id = tail[: match.start()] if match else tail
        return CounterName(subject_kind, subject_id, unit, window, "", generation)

    def rebuild_list(self, rebuild_id: str, node_id: str) -> str:
        """Return the key of what a node hands over to a rebuild."""
        return f"{self.rebuild}:{rebuild_id}:{node_id}"

    def rebuild_frozen(self, rebuild_id: str) -> str:
        """Return the key of the nodes that have handed over what they had."""
        return f"{self.rebuild}:{rebuild_id}:frozen"

    def _key(self, kind: LayerKind, layer: Layer | CounterName, period_id: str) -> str:
        subject_id, generation = layer.subject_id, layer.reset_generation
        tail = f":{period_id}" if period_id else ""
        # `gpt-4` in its first generation must not share a counter with `gpt-4.1` in none.
        if generation or (not period_id and _GENERATION_TAIL.search(subject_id)):
            tail += f".{generation}"
        return f"{self.prefix}{kind}:{_letters(layer)}:{subject_id}{tail}"


@dataclass(frozen=True, slots=True, eq=False)
class BoundPlan:
    """A plan with its keys, as it can be sent until the first of its periods ends.

    It does not hold the plan: the memory of `Binder` ends with the plan.

    Attributes:
        keys: Counters in the plan's order; a layer that has a next period has two.
        parallel_keys: Those of `keys` that are sets of requests in flight.
        period_ids: Per layer its period and the next one; empty for layers without.
        packed: The layers as the admit script reads them.
        layers: The same, unpacked: `LAYER_FIELDS` values for each.
        valid_from_ms: Limiter time from which the first periods run.
        valid_until_ms: Limiter time at which the first of them ends.
        mark_keys: Those that say that the plan's caller was revoked, as `Keyspace.marks` has them;
            none where nobody said who calls.
    """

    keys: tuple[str, ...]
    parallel_keys: tuple[str, ...]
    period_ids: tuple[tuple[str, str], ...]
    packed: msgspec.Raw
    layers: tuple[tuple[int, ...], ...]
    valid_from_ms: int
    valid_until_ms: int
    mark_keys: tuple[str, ...] = ()


class Binder:
    """Gives plans their keys, and remembers them as long as they are right."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._calendar = Calendar()
        self._bound: WeakKeyDictionary[LayerPlan, BoundPlan] = WeakKeyDictionary()

    def bind(self, plan: LayerPlan, now_ms: int, principal: Principal | None = None) -> BoundPlan:
        """Return `plan` bound to the periods of `now_ms`, limiter time.

        Args:
            plan: The layers.
            now_ms: Limiter time.
            principal: Who calls, always the same of one plan; None: it does not matter who.

        Raises:
            zoneinfo.ZoneInfoNotFoundError: A layer names a zone that does not exist.
        """
        known = self._bound.get(plan)
        if (
            known is not None
            and known.valid_from_ms <= now_ms < known.valid_until_ms
            and (principal is None or known.mark_keys)
        ):
            return known
        fresh = self._bind(plan, now_ms, principal)
        self._bound[plan] = fresh
        return fresh

    def _bind(self, plan: LayerPlan, now_ms: int, principal: Principal | None) -> BoundPlan:
        keys: list[str] = []
        parallel_keys: list[str] = []
        period_ids: list[tuple[str, str]] = []
        layers: list[tuple[int, ...]] = []
        valid_from_ms, valid_until_ms = 0, FOREVER_MS
        for layer in plan.layers:
            head = (_code(layer), len(keys), layer.capacity, int(layer.is_shadow))
            if layer.kind in _CALENDAR_KINDS:
                periods = self._calendar.at(layer.window, layer.time_zone, now_ms)
                keys.append(self._keyspace.counter(layer, periods.period_id))
                if periods.next_id != periods.period_id:
                    keys.append(self._keyspace.counter(layer, periods.next_id))
                period_ids.append((periods.period_id, periods.next_id))
                layers.append((*head, periods.start_ms, periods.end_ms, periods.next_end_ms))
                valid_from_ms = max(valid_from_ms, periods.start_ms)
                valid_until_ms = min(valid_until_ms, periods.end_ms)
                continue
            keys.append(self._keyspace.counter(layer))
            period_ids.append(("", ""))
            layers.append((*head, *_details(layer)))
            if layer.kind is LayerKind.PARALLEL:
                parallel_keys.append(keys[-1])
        return BoundPlan(
            keys=tuple(keys),
            parallel_keys=tuple(parallel_keys),
            period_ids=tuple(period_ids),
            packed=msgspec.Raw(_ENCODER.encode([value for layer in layers for value in layer])),
            layers=tuple(layers),
            valid_from_ms=valid_from_ms,
            valid_until_ms=valid_until_ms,
            mark_keys=() if principal is None else self._keyspace.marks(principal),
        )


def _code(layer: Layer) -> int:
    if layer.kind is LayerKind.SPEND and not layer.is_hard:
        return SOFT_SPEND
    return _CODES[layer.kind, layer.unit]


def _details(layer: Layer) -> tuple[int, int, int]:
    """Return what the script needs to know of a layer without periods."""
    match layer.kind:
        case LayerKind.ROLLING:
            return _WINDOW_MS[layer.window] // SLOTS, 0, 0
        case LayerKind.RATE:
            interval_us = layer.emission_interval_us
            return interval_us, min(interval_us * layer.most_at_once, _MOST_AHEAD_US), 0
        case _:
            return 0, 0, 0
