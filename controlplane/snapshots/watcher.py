"""What one data plane was told and what it answered: the state of one stream, without its I/O.

    announced ──▶ transferring ──▶ unanswered ──Ack──▶ applied
                                        └────Nack──▶ refused (until something newer is published)

One transfer runs at a time, always of what was newest when it began. What is published meanwhile
replaces what was published before it, so a slow node skips revisions and nothing queues up.
Revocations, counter tasks and heartbeats go between the messages of a transfer.

A transfer that builds on what the node has (DELTA) belongs into `_next_transfer`; a node that
refuses one for its position gets everything, as it does already for a transfer of nothing.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import errors_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.snapshot import (
    Position,
    Snapshot,
    position_from_proto,
    position_to_proto,
)
from controlplane.snapshots.transfers import (
    SecretOpener,
    Transfer,
    empty_transfer,
    full_transfer,
)

# Three silent intervals are the death of a stream.
SILENT_HEARTBEATS: Final = 3

# 30 s: longer than any node takes to apply; afterwards something newer may be sent all the same.
ANSWER_PATIENCE_S: Final = 30.0

# More would mean that a node reads nothing; it is cut off and comes back to a whole transfer.
MAX_QUEUED_REVOCATIONS: Final = 10_000

_MAX_PROBLEMS: Final = 20
_MAX_QUARANTINED: Final = 100
_MAX_TEXT: Final = 500


class StreamViolationError(Exception):
    """The node said something that the contract does not allow here; the text may be shown to it."""


@dataclass(slots=True)
class _Outstanding:
    """A transfer that was begun and not answered."""

    transfer: Transfer
    is_sent: bool = False
    sent_at_s: float = 0.0


class Watcher:
    """One node's stream: decides what to say next, and keeps what was heard.

    `now_s` is always the same monotonic clock. `wake` is set whenever there may be something new
    to say; `ended` holds the reason once the stream is to be closed.
    """

    def __init__(
        self, hello: pb.Hello, *, interval_s: float, open_secret: SecretOpener, now_s: float
    ) -> None:
        self.node_id = hello.node_id
        self.version = hello.version
        self.boot_id = hello.boot_id
        self.applied = position_from_proto(hello.applied)
        self.heard_at_s = now_s
        self.not_ready: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_UNSPECIFIED
        self.unreported_records = 0
        self.limits_unavailable = False
        self.maintains_counters = False
        self.oldest_unreported_at: datetime | None = None
        self.quarantined: tuple[str, ...] = ()
        self.wake = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._problems: tuple[str, ...] = ()
        self._refused: Position | None = None
        self._wants_everything = False
        self._is_greeted = False
        self._newest: Snapshot | None = None
        self._outstanding: _Outstanding | None = None
        self._last_transfer_id = 0
        self._revocations: deque[pb.Revocation] = deque()
        self._counter_tasks: deque[pb.CounterTask] = deque()
        self._interval_s = interval_s
        self._heartbeat_at_s = now_s + interval_s
        self._open_secret = open_secret

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the last refused transfer, while its content is still the newest."""
        if self._newest is None or self._refused != self._newest.position:
            return ()
        return self._problems

    def is_live(self, now_s: float) -> bool:
        """Say whether the stream is open and the node was heard within three heartbeats."""
        return not self.ended.done() and now_s < self.silent_at_s

    @property
    def silent_at_s(self) -> float:
        """When the stream is dead, unless something is heard before."""
        return self.heard_at_s + SILENT_HEARTBEATS * self._interval_s

    def end(self, reason: str) -> None:
        """Ask for the stream to be closed; the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)
        self.wake.set()

    def offer(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the newest; it replaces one that was not sent yet."""
        self._newest = snapshot
        self.wake.set()

    def revoke(self, revocation: pb.Revocation) -> None:
        """Send `revocation` next, ahead of everything else."""
        if len(self._revocations) >= MAX_QUEUED_REVOCATIONS:
            self.end("too many revocations were not read")
            return
        self._revocations.append(revocation)
        self.wake.set()

    def ask(self, task: pb.CounterTask) -> None:
        """Send `task` next, behind revocations. Whoever asks bounds how many wait at once."""
        self._counter_tasks.append(task)
        self.wake.set()

    def withdraw(self, task: pb.CounterTask) -> None:
        """Do not send a task any more, if it was not sent yet."""
        with contextlib.suppress(ValueError):
            self._counter_tasks.remove(task)

    # ── What to say ──────────────────────────────────────────────────────────────────────────

    def next_message(self, now_s: float) -> pb.StreamConfigResponse | None:
        """Return what to say now, or None when there is nothing before the next heartbeat or wake."""
        if self._revocations:
            return pb.StreamConfigResponse(revocation=self._revocations.popleft())
        if self._counter_tasks:
            return pb.StreamConfigResponse(counter_task=self._counter_tasks.popleft())
        if now_s >= self._heartbeat_at_s:
            self._heartbeat_at_s = now_s + self._interval_s
            heartbeat = pb.Heartbeat(position=position_to_proto(self.current()))
            return pb.StreamConfigResponse(heartbeat=heartbeat)
        if self._outstanding is None or self._is_overdue(self._outstanding, now_s):
            self._outstanding = self._next_outstanding()
        return self._next_part(now_s)

    def idle_s(self, now_s: float) -> float:
        """Return how long there is nothing to say unless `wake` is set, in seconds."""
        return max(0.0, self._heartbeat_at_s - now_s)

    def current(self) -> Position:
        """Return the newest position; an empty one before anything was published."""
        return self._newest.position if self._newest else Position()

    def _next_part(self, now_s: float) -> pb.StreamConfigResponse | None:
        outstanding = self._outstanding
        if outstanding is None or outstanding.is_sent:
            return None
        message = next(outstanding.transfer.messages)
        if message.HasField("transfer_end"):
            outstanding.is_sent = True
            outstanding.sent_at_s = now_s
        return message

    def _is_overdue(self, outstanding: _Outstanding, now_s: float) -> bool:
        return (
            outstanding.is_sent
            and now_s - outstanding.sent_at_s > ANSWER_PATIENCE_S
            and self._newest is not None
            and self._newest.position != outstanding.transfer.to
        )

    def _next_outstanding(self) -> _Outstanding | None:
        snapshot = self._newest
        if snapshot is None or not self._needs(snapshot.position):
            return None
        self._last_transfer_id += 1
        return _Outstanding(self._next_transfer(snapshot))

    def _needs(self, position: Position) -> bool:
        if self._wants_everything:
            return True
        if position in (self.applied, self._refused) and self._is_greeted:
            return False
        # A node may come from a control plane that is further than this one: revisions only go up.
        is_behind_node = (
            self.applied.config_epoch == position.config_epoch
            and self.applied.revision > position.revision
        )
        return not is_behind_node

    def _next_transfer(self, snapshot: Snapshot) -> Transfer:
        # The first transfer comes in any case: a node that is up to date is told so.
        self._is_greeted = True
        if snapshot.position.has_content_of(self.applied) and not self._wants_everything:
            return empty_transfer(self._last_transfer_id, snapshot.position)
        self._wants_everything = False
        return full_transfer(
            self._last_transfer_id,
            snapshot,
            self._reason(snapshot.position),
            self._open_secret,
            force=snapshot.has_mass_deletion_since(self.applied),
        )

    def _reason(self, position: Position) -> pb.TransferReason.ValueType:
        if not self.applied.config_epoch:
            return pb.TRANSFER_REASON_FIRST
        if (
            self.applied.config_epoch != position.config_epoch
            or self.applied.revision >= position.revision
        ):
            return pb.TRANSFER_REASON_MISMATCH
        return pb.TRANSFER_REASON_CHANGED

    # ── What was heard ───────────────────────────────────────────────────────────────────────

    def hear_ack(self, ack: pb.Ack) -> None:
        """Note that a transfer is in force; answers to others than the running one are dropped.

        A node that claims another position than it was given did not apply it: that is a refusal.
        """
        outstanding = self._answered(ack.transfer_id)
        if outstanding is None:
            return
        applied = position_from_proto(ack.applied)
        if applied != outstanding.transfer.to:
            self._refuse(outstanding.transfer, applied, ("acknowledged another position",))
            return
        self.applied = applied
        self._refused = None
        self.quarantined = tuple(
            f"{ResourceKey(each.resource.kind, each.resource.id)}: {each.detail[:_MAX_TEXT]}"
            for each in ack.quarantined[:_MAX_QUARANTINED]
        )

    def hear_nack(self, nack: pb.Nack) -> None:
        """Note that a transfer was refused: it is not sent again until something newer is there."""
        outstanding = self._answered(nack.transfer_id)
        if outstanding is None:
            return
        problems = tuple(problem[:_MAX_TEXT] for problem in nack.problems[:_MAX_PROBLEMS])
        name = pb.NackReason.Name(nack.reason) if nack.reason in pb.NackReason.values() else "?"
        self._refuse(
            outstanding.transfer, position_from_proto(nack.applied), problems or (name.lower(),)
        )
        is_about_position = nack.reason in (pb.NACK_REASON_POSITION, pb.NACK_REASON_DIGEST)
        if is_about_position and outstanding.transfer.intent != pb.TRANSFER_INTENT_FULL:
            self._wants_everything = True

    def hear_heartbeat(self, heartbeat: pb.Heartbeat) -> None:
        """Note where the node stands; one that stands elsewhere than it said gets a transfer."""
        if heartbeat.HasField("position") and self._outstanding is None:
            self.applied = position_from_proto(heartbeat.position)
        self.not_ready = heartbeat.not_ready
        self.unreported_records = heartbeat.unreported_records
        self.limits_unavailable = heartbeat.limits_unavailable
        self.maintains_counters = heartbeat.maintains_counters
        is_behind = heartbeat.HasField("oldest_unreported_at")
        self.oldest_unreported_at = _instant(heartbeat.oldest_unreported_at) if is_behind else None
        self.wake.set()

    def _answered(self, transfer_id: int) -> _Outstanding | None:
        outstanding = self._outstanding
        if outstanding is None or outstanding.transfer.transfer_id != transfer_id:
            return None
        # A node may refuse a transfer before its end; the rest of it is not sent any more.
        self._outstanding = None
        self.wake.set()
        return outstanding

    def _refuse(self, transfer: Transfer, applied: Position, problems: tuple[str, ...]) -> None:
        self.applied = applied
        self._refused = transfer.to
        self._problems = problems


def _instant(timestamp: Timestamp) -> datetime | None:
    """Return an instant of a node's; None for one that no clock shows."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
