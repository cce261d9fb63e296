"""The operations of the limiter's script, as they travel.

One call of the script carries a batch: the keys it may touch, and one packed
argument with the operations and the plans they name. Requests of one API key
share a plan, so that its layers and keys travel once per batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol

import msgspec

from dataplane.domain.limiting import LayerPlan
from dataplane.limits.counters import BoundPlan, Keyspace


class Verb(IntEnum):
    """What an operation does; the script gets the same numbers."""

    ADMIT = 1
    SETTLE = 2
    RELEASE = 3
    REAP = 4
    HEARTBEAT = 5
    FIND = 6
    BALANCE = 7


class Outcome(IntEnum):
    """How an operation ended; the script gets the same numbers.

    `OK` done. `DUPLICATE` done before, with the first answer. `DENY` a layer was short.
    `EXPIRED` the caller has stopped waiting. `COLD` the counters are not those of the
    caller's epoch. `RELEASED` the request was given back already. `STALE` the
    periods sent do not hold the limiter's time. `GONE` there is no reservation. `FAULT` the
    operation met something it does not understand.
    """

    OK = 0
    DUPLICATE = 1
    DENY = 2
    EXPIRED = 3
    COLD = 4
    RELEASED = 5
    STALE = 6
    GONE = 7
    FAULT = 8


# The counter epoch and the packed batch come before the texts.
_FIXED_ARGUMENTS: Final = 2

# An answer is [outcome, …]; what follows is described at the operation in `scripts/`.
# Any: the fields differ by operation, and the script that wrote them is ours.
Answer = list[Any]


class Layout:
    """The keys, plans and texts of one batch, numbered as the script counts them: from 1."""

    __slots__ = ("_bases", "_declared", "keys", "plans", "texts")

    def __init__(self, keyspace: Keyspace) -> None:
        self.keys: list[str] = [keyspace.clock, keyspace.epoch, keyspace.leases]
        self.plans: list[msgspec.Raw] = []
        self.texts: list[bytes] = []
        self._bases: dict[int, tuple[int, int]] = {}
        self._declared: set[int] = set()

    def key(self, key: str) -> int:
        """Declare a key and return its number."""
        self.keys.append(key)
        return len(self.keys)

    def text(self, text: bytes) -> int:
        """Add an argument of its own and return its number.

        The script's unpacker knows text but no binary, so bytes travel outside the batch.
        """
        self.texts.append(text)
        return len(self.texts) + _FIXED_ARGUMENTS

    def declare(self, bound: BoundPlan) -> None:
        """Declare the keys of a plan, which the script finds in the reservation."""
        if id(bound) not in self._declared:
            self._declared.add(id(bound))
            self.keys.extend(bound.keys)

    def plan(self, bound: BoundPlan) -> tuple[int, int]:
        """Declare a plan; return its number and the number of its first key."""
        known = self._bases.get(id(bound))
        if known is None:
            self.plans.append(bound.packed)
            known = (len(self.plans), len(self.keys) + 1)
            self.keys.extend(bound.keys)
            self._bases[id(bound)] = known
            self._declared.add(id(bound))
        return known


class Operation(Protocol):
    """One entry of a batch."""

    @property
    def request_id(self) -> str:
        """The request it is about; empty for none."""
        ...

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the keys it may touch and return its fields."""
        ...


@dataclass(slots=True)
class Admit:
    """Reserve from every layer or from none. Times are server milliseconds."""

    request_id: str
    plan: LayerPlan
    bound: BoundPlan
    tokens: int
    cost_nanousd: int
    meta: bytes
    not_after_ms: int = 0

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and the plan."""
        key = layout.key(keyspace.reservation(self.request_id))
        plan, base = layout.plan(self.bound)
        return (
            int(Verb.ADMIT),
            key,
            self.request_id,
            plan,
            base,
            self.tokens,
            self.cost_nanousd,
            self.not_after_ms,
            layout.text(self.meta),
        )


@dataclass(frozen=True, slots=True)
class Settle:
    """Replace what a request holds by what it took."""

    request_id: str
    tokens: int
    cost_nanousd: int
    bound: BoundPlan | None = None
    keys: Sequence[str] = ()

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = _declare(layout, keyspace, self.request_id, self.bound, self.keys)
        return (int(Verb.SETTLE), key, self.request_id, self.tokens, self.cost_nanousd)


@dataclass(frozen=True, slots=True)
class Release:
    """Give back what a request reserved, or see that a late admit of it does nothing."""

    request_id: str
    bound: BoundPlan | None = None

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = _declare(layout, keyspace, self.request_id, self.bound, ())
        return (int(Verb.RELEASE), key, self.request_id)


@dataclass(frozen=True, slots=True)
class Reap:
    """Charge a reservation whose owner died at what it reserved."""

    request_id: str
    keys: Sequence[str]

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = _declare(layout, keyspace, self.request_id, None, self.keys)
        return (int(Verb.REAP), key, self.request_id)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Renew the lease of a request in flight."""

    request_id: str
    bound: BoundPlan

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its parallel sets."""
        key = layout.key(keyspace.reservation(self.request_id))
        parallel = [layout.key(each) for each in self.bound.parallel_keys]
        return (int(Verb.HEARTBEAT), key, self.request_id, parallel)


@dataclass(frozen=True, slots=True)
class Find:
    """Ask which counters a reservation holds."""

    request_id: str

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation."""
        return (int(Verb.FIND), layout.key(keyspace.reservation(self.request_id)))


@dataclass(slots=True)
class Balance:
    """Ask what every layer of a plan has counted."""

    bound: BoundPlan
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the plan."""
        return (int(Verb.BALANCE), *layout.plan(self.bound))


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call of the script returned.

    Attributes:
        server_now_ms: The server's own clock.
        now_ms: Limiter time: the server's clock, never going back.
        answers: One per operation, in order.
    """

    server_now_ms: int
    now_ms: int
    answers: list[Answer]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, int, list[list[Any]]])


def encode(operations: Sequence[Operation], keyspace: Keyspace) -> tuple[list[str], list[bytes]]:
    """Return the keys of a batch, and its arguments from the second on."""
    layout = Layout(keyspace)
    packed = [operation.pack(layout, keyspace) for operation in operations]
    return layout.keys, [_ENCODER.encode((packed, layout.plans)), *layout.texts]


def decode(reply: bytes) -> Reply:
    """Return what the script answered.

    Raises:
        msgspec.MsgspecError: The bytes are not an answer of the script.
    """
    server_now_ms, now_ms, answers = _DECODER.decode(reply)
    return Reply(server_now_ms, now_ms, answers)


def _declare(
    layout: Layout,
    keyspace: Keyspace,
    request_id: str,
    bound: BoundPlan | None,
    keys: Sequence[str],
) -> int:
    number = layout.key(keyspace.reservation(request_id))
    if bound is not None:
        layout.declare(bound)
    layout.keys.extend(keys)
    return number
