"""The operations of the limiter's script that maintenance needs, as they travel.

They reap, compare and rebuild; whatever only the holder of the maintenance lease may do carries its
number, the fence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataplane.limits.counters import COUNTER_FIELDS, Keyspace
from dataplane.limits.operations import NO_FENCE, Layout, Verb


@dataclass(frozen=True, slots=True)
class Overdue:
    """Ask for at most `limit` requests whose lease has run out, oldest first.

    Answers `[OK, now, [request id, …]]`.
    """

    limit: int
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare nothing."""
        return (int(Verb.OVERDUE), self.limit)


@dataclass(frozen=True, slots=True)
class Unreported:
    """Ask for at most `limit` reaped requests whose record may not be in the ledger, oldest first.

    Answers `[OK, now, [request id, …]]`.
    """

    limit: int
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare nothing."""
        return (int(Verb.UNREPORTED), self.limit)


@dataclass(frozen=True, slots=True)
class Forget:
    """Take a reaped request off the list: its record is in the ledger.

    A late settle can correct its charge for an hour more. Answers `[OK]`, or `[GONE]` when it is not listed.
    """

    request_id: str

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation."""
        key = layout.key(keyspace.reservation(self.request_id))
        return (int(Verb.FORGET), key, self.request_id)


@dataclass(frozen=True, slots=True)
class Maintain:
    """Take or renew the lease of the node that maintains the counters.

    Answers `[OK, fence]`; the number rises whenever the lease is taken anew, even after the server
    lost its data. `[TAKEN, node id]` while another node has it.
    """

    node_id: str
    lease_ms: int
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the lease and its number."""
        lease, fence = layout.key(keyspace.maintenance), layout.key(keyspace.fence)
        return (int(Verb.MAINTAIN), lease, fence, self.node_id, self.lease_ms)


@dataclass(frozen=True, slots=True)
class Resign:
    """Give up the maintenance lease. Answers `[OK]`, or `[GONE]` when `node_id` does not have it."""

    node_id: str
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the lease."""
        return (int(Verb.RESIGN), layout.key(keyspace.maintenance), self.node_id)


@dataclass(frozen=True, slots=True)
class Correct:
    """Set a counter of a calendar period, if it still is what the caller has read.

    Answers `[OK, crossings]`; `[MOVED]` when it is something else by now; `[FENCED]`.

    Attributes:
        key: The counter; one that does not exist reads as 0 and is created.
        code: `PERIOD_REQUESTS`, `PERIOD_TOKENS`, `SPEND` or `SOFT_SPEND`; both of the last are one.
        settled_before: What it is; the count, for one that is not money.
        settled: What it shall be.
        held_before: What it holds; not read for one that is not money.
        held: What it shall hold.
        ends_ms: Limiter time at which its period ends; `FOREVER_MS` for a total.
        fence: Of the maintenance lease.
        capacity: Of the budget, for the crossings; 0 tells of none.
    """

    key: str
    code: int
    settled_before: int
    settled: int
    held_before: int
    held: int
    ends_ms: int
    fence: int = NO_FENCE
    capacity: int = 0
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the counter."""
        return (
            int(Verb.CORRECT),
            layout.key(self.key),
            self.code,
            self.settled_before,
            self.settled,
            self.held_before,
            self.held,
            self.ends_ms,
            self.capacity,
            *layout.fence(self.fence),
        )


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise a counter of a calendar period to what the ledger says, whatever it is by now.

    It is never lowered, what it holds is left, and a repetition changes nothing.
    Answers `[OK, crossings]`; `[MOVED]` when there is nothing to raise (any more); `[FENCED]`.

    Attributes:
        key: The counter; one that does not exist reads as 0 and is created.
        code: As in `Correct`.
        settled: What it shall have settled at least; the count, for one that is not money.
        counts_held: Whether what a budget holds makes up for what it lacks: of requests that the
            ledger has, the settlement may be under way. Not read for one that is not money.
        ends_ms: Limiter time at which its period ends; `FOREVER_MS` for a total.
        fence: Of the maintenance lease.
        capacity: Of the budget, for the crossings; 0 tells of none.
    """

    key: str
    code: int
    settled: int
    counts_held: bool
    ends_ms: int
    fence: int = NO_FENCE
    capacity: int = 0
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the counter."""
        return (
            int(Verb.RAISE),
            layout.key(self.key),
            self.code,
            self.settled,
            int(self.counts_held),
            self.ends_ms,
            self.capacity,
            *layout.fence(self.fence),
        )


@dataclass(frozen=True, slots=True)
class Restore:
    """Make a reservation anew while lost counters are rebuilt, and count what it holds.

    Answers `[OK]`; `[DUPLICATE]` when it belongs to `epoch` already; `[RELEASED]`; `[FENCED]`.

    Attributes:
        request_id: The request.
        counters: As in `Held`; rolling windows among them are left out, they start empty.
        meta: As its admit had it.
        admitted_at_ms: Limiter time of its admission.
        epoch: The counter epoch that is being built.
        fence: Of the maintenance lease.
    """

    request_id: str
    counters: Sequence[int | str]
    meta: bytes
    admitted_at_ms: int
    epoch: str
    fence: int = NO_FENCE

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the reservation and its counters."""
        keys = [str(key) for key in self.counters[1::COUNTER_FIELDS]]
        key = layout.request(self.request_id, None, keys)
        return (
            int(Verb.RESTORE),
            key,
            self.request_id,
            self.counters,
            layout.text(self.meta),
            self.admitted_at_ms,
            self.epoch,
            *layout.fence(self.fence),
        )


@dataclass(frozen=True, slots=True)
class OpenEpoch:
    """Open a counter epoch: the counters are right. Answers `[OK]` or `[FENCED]`."""

    epoch: str
    fence: int = NO_FENCE
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare nothing of its own."""
        return (int(Verb.OPEN_EPOCH), self.epoch, *layout.fence(self.fence))
