"""The operations of the limiter's script, as they travel; those of maintenance are in `upkeep.py`.

One call of the script carries a batch: the keys it may touch, and one packed
argument with the operations and the plans they name. Requests of one API key
share a plan, so that its layers and keys travel once per batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol

import msgspec

from dataplane.domain.limiting import LayerPlan
from dataplane.domain.principals import Principal
from dataplane.domain.snapshot import Position
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
    EXTEND = 8
    OVERDUE = 9
    UNREPORTED = 10
    FORGET = 11
    MAINTAIN = 12
    RESIGN = 13
    CORRECT = 14
    RESTORE = 15
    OPEN_EPOCH = 16
    RESET_CLOCK = 17
    CANCEL = 18
    RAISE = 19
    MARK = 20


class Outcome(IntEnum):
    """How an operation ended; the script gets the same numbers.

    `OK` done. `DUPLICATE` done before, with the first answer. `DENY` a layer was short.
    `EXPIRED` the caller has stopped waiting. `COLD` the counters are not those of the
    caller's epoch. `RELEASED` the request was given back already. `STALE` the
    periods sent do not hold the limiter's time. `GONE` there is no reservation. `FAULT` the
    operation met something it does not understand. `TAKEN` another node maintains the counters.
    `MOVED` what the caller had read has changed meanwhile. `FENCED` the caller no longer
    maintains the counters. `REVOKED` who asks was revoked, and its node does not know yet.
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
    TAKEN = 9
    MOVED = 10
    FENCED = 11
    REVOKED = 12


# For whoever needs no maintenance lease, such as a node that forfeits what it reserved itself.
NO_FENCE: Final = -1


# States of a reservation, as `Find` answers them; one that is lost belongs to another counter epoch.
HELD: Final = 1
REAPED: Final = 2
LOST: Final = 3

# The counter epoch, the packed batch and the packed callers come before the texts.
_FIXED_ARGUMENTS: Final = 3

# An answer is [outcome, …]; what follows is described at the operation in `scripts/`.
# Any: the fields differ by operation, and the script that wrote them is ours.
Answer = list[Any]


class Layout:
    """The keys, plans and texts of one batch, numbered as the script counts them: from 1.

    Marks of revocations have numbers of their own; their keys are the last of the batch.
    """

    __slots__ = (
        "_bases",
        "_caller_numbers",
        "_declared",
        "_keyspace",
        "callers",
        "keys",
        "marks",
        "plans",
        "texts",
    )

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.keys: list[str] = [
            keyspace.clock, keyspace.epoch, keyspace.leases, keyspace.reaped,
        ]  # fmt: skip
        self.plans: list[msgspec.Raw] = []
        self.texts: list[bytes] = []
        self.marks: dict[str, int] = {}
        self.callers: list[tuple[str | int, ...]] = []
        self._caller_numbers: dict[tuple[int, int], int] = {}
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

    def caller(self, bound: BoundPlan, position: Position | None) -> int:
        """Declare who asks, by which configuration; return the number, 0 where nobody says so."""
        if position is None or not bound.mark_keys:
            return 0
        # Whoever asks holds on to both while the batch is made.
        name = id(bound), id(position)
        number = self._caller_numbers.get(name)
        if number is None:
            marks = self.marks
            numbers = [marks.setdefault(key, len(marks) + 1) for key in bound.mark_keys]
            self.callers.append((position.config_epoch, position.revision, *numbers))
            number = self._caller_numbers[name] = len(self.callers)
        return number

    def request(
        self, request_id: str, bound: BoundPlan | None = None, keys: Sequence[str] = ()
    ) -> int:
        """Declare a reservation and its counters; return the number of the reservation."""
        number = self.key(self._keyspace.reservation(request_id))
        if bound is not None:
            self.declare(bound)
        self.keys.extend(keys)
        return number

    def fence(self, fence: int) -> tuple[int, int]:
        """Return the number of the key of the newest fence, and the caller's."""
        return self.key(self._keyspace.fence), fence


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
    """Reserve from every layer or from none. Times are server milliseconds.

    Hard budgets hold `cost_nanousd`, soft ones `expected_nanousd` (None: the same). `meta` is
    UTF-8 text for whoever finds the reservation after its owner died. `on_late_undo` is called, and
    does not travel, when the admit was undone too late to keep a reaper from reporting it; it may
    come for one that never took effect. `principal` is who asks, by the configuration of `position`:
    one that was revoked after it is refused; without both, anybody is let in who has room.
    Answers as told in `scripts/admit.lua`.
    """

    request_id: str
    plan: LayerPlan
    bound: BoundPlan
    tokens: int
    cost_nanousd: int
    meta: bytes
    not_after_ms: int = 0
    expected_nanousd: int | None = None
    on_late_undo: Callable[[], None] | None = None
    position: Position | None = None
    principal: Principal | None = None

    @property
    def soft_nanousd(self) -> int:
        """What soft budgets hold."""
        return self.cost_nanousd if self.expected_nanousd is None else self.expected_nanousd

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
            self.soft_nanousd,
            layout.caller(self.bound, self.position),
        )


@dataclass(frozen=True, slots=True)
class Settle:
    """Replace what a request holds by what it took.

    Answers `[OK, crossings]`, or `[GONE]` when no reservation of this counter epoch is left.
    Crossings are `[key, percent, capacity, settled, held]` of each budget that came to 80 or
    100 percent, once per counter and percentage; here, in `Reap`, `Correct` and `Raise`.
    """

    request_id: str
    tokens: int
    cost_nanousd: int
    bound: BoundPlan | None = None
    keys: Sequence[str] = ()

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = layout.request(self.request_id, self.bound, self.keys)
        return (int(Verb.SETTLE), key, self.request_id, self.tokens, self.cost_nanousd)


@dataclass(frozen=True, slots=True)
class Release:
    """Give back what a request reserved, or see that a late admit of it does nothing.

    `keys` are its counters, from `Find`, where nobody has the plan.
    """

    request_id: str
    bound: BoundPlan | None = None
    keys: Sequence[str] = ()

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = layout.request(self.request_id, self.bound, self.keys)
        return (int(Verb.RELEASE), key, self.request_id)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Undo one admission of a request, which may be asked for again.

    Answers `[OK]`, or `[GONE]` when there is no admission of `admitted_at_ms`, limiter time, or it
    belongs to another counter epoch.
    """

    request_id: str
    bound: BoundPlan
    admitted_at_ms: int

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and the plan."""
        key = layout.key(keyspace.reservation(self.request_id))
        plan, base = layout.plan(self.bound)
        return (int(Verb.CANCEL), key, self.request_id, plan, base, self.admitted_at_ms)


@dataclass(frozen=True, slots=True)
class Reap:
    """Charge a reservation whose owner died, and list it until its usage record is in the ledger.

    Answers `[OK, crossings]`; `[DUPLICATE]` when it was reaped before; `[GONE]` when there is
    none; `[FENCED]`; `[MOVED]` when a fence is given and the owner's lease still runs.

    Attributes:
        request_id: The request.
        keys: Its counters, from `Find`.
        fence: Of the maintenance lease; `NO_FENCE` for a node that forfeits its own request.
        charged_nanousd: What its record charges; None: every budget is charged what it holds.
    """

    request_id: str
    keys: Sequence[str]
    fence: int = NO_FENCE
    charged_nanousd: int | None = None

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = layout.request(self.request_id, None, self.keys)
        charged = -1 if self.charged_nanousd is None else self.charged_nanousd
        fence = layout.fence(self.fence)
        return (int(Verb.REAP), key, self.request_id, charged, *fence)


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
    """Ask what a reservation holds.

    Answers `[OK, state, [key, …], meta, [key, held, …]]` or `[GONE]`: `state` is `HELD`, `REAPED` or
    `LOST`, the keys are those of all counters that a settle would move (of one that is lost it moves
    none but parallel sets), the meta is text, and the last are the holds of budgets in nano-USD; none
    unless it is held.
    """

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
class Extend:
    """Raise what the soft budgets of a request hold to `expected_nanousd`, all of them or none.

    Answers `[OK]`, also when they hold that much already; `[DENY]` when one has no room: nothing
    changed; `[GONE]` when the request is no longer held; `[REVOKED, …]` when its caller was revoked
    after `position`, that of its admission, and its streams are to end.
    """

    request_id: str
    bound: BoundPlan
    expected_nanousd: int
    position: Position | None = None

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        key = layout.request(self.request_id, self.bound)
        caller = layout.caller(self.bound, self.position)
        return (int(Verb.EXTEND), key, self.expected_nanousd, caller)


@dataclass(frozen=True, slots=True)
class ResetClock:
    """Let limiter time go back to the server's clock. Answers `[OK]` or `[FENCED]`."""

    fence: int = NO_FENCE
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare nothing of its own."""
        return (int(Verb.RESET_CLOCK), *layout.fence(self.fence))


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
    batch = _ENCODER.encode((packed, layout.plans, len(layout.marks)))
    callers = _ENCODER.encode(layout.callers) if layout.callers else b""
    return [*layout.keys, *layout.marks], [batch, callers, *layout.texts]


def decode(reply: bytes) -> Reply:
    """Return what the script answered.

    Raises:
        msgspec.MsgspecError: The bytes are not an answer of the script.
    """
    server_now_ms, now_ms, answers = _DECODER.decode(reply)
    return Reply(server_now_ms, now_ms, answers)
