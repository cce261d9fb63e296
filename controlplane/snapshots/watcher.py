"""What one data plane was told and what it answered: the state of one stream, without its I/O.

    announced ──▶ transferring ──▶ unanswered ──Ack──▶ applied
                                        └────Nack──▶ refused (until something newer is published)

One transfer runs at a time, always of what was newest when it began. What is published meanwhile
replaces what was published before it, so a slow node skips revisions and nothing queues up.
Revocations, counter tasks and heartbeats go between the messages of a transfer. Which transfer
comes next is decided in `decisions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.bundles import Bundler
from controlplane.snapshots.decisions import Decision, decide, is_ahead
from controlplane.snapshots.gate import FullGate
from controlplane.snapshots.node_state import refusal_of
from controlplane.snapshots.open_stream import Ending, OpenStream
from controlplane.snapshots.opening import SecretOpener
from controlplane.snapshots.scopes import Scope
from controlplane.snapshots.snapshot import (
    Position,
    Snapshot,
    position_from_proto,
)
from controlplane.snapshots.tally import Publications, Tally
from controlplane.snapshots.transfers import (
    Message,
    Transfer,
    delta_transfer,
    empty_transfer,
    full_transfer,
)
from controlplane.snapshots.understanding import Understanding

# 30 s, and more for much: longer than any node takes to apply; afterwards something newer may be sent all the same. Sent
# too early it would undo the work of a node that is slow, again and again.
ANSWER_PATIENCE_S: Final = 30.0
SLOWEST_APPLIED_PER_S: Final = 5_000

# 2 s: two polls of the database. Who has something newer than that asks another control plane.
CATCH_UP_S: Final = 2.0

_INTENTS: Final = {
    pb.TRANSFER_INTENT_NONE: "none",
    pb.TRANSFER_INTENT_DELTA: "delta",
    pb.TRANSFER_INTENT_FULL: "full",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the watchers of one fleet share. `on_ahead` is told where a node stands that is ahead."""

    interval_s: float
    open_secret: SecretOpener
    gate: FullGate
    tally: Tally
    publications: Publications
    on_ahead: Callable[[Position], None]


@dataclass(slots=True)
class _Outstanding:
    """A transfer that was begun and not answered."""

    transfer: Transfer
    is_sent: bool = False
    sent_at_s: float = 0.0


class Watcher(OpenStream):
    """One node's stream: decides what to say next, and keeps what was heard.

    Leads the node to what is newest in its scope, by one transfer at a time.
    """

    def __init__(
        self,
        hello: pb.Hello,
        understanding: Understanding,
        scope: Scope,
        surroundings: Surroundings,
        *,
        now_s: float,
        lives_s: float,
    ) -> None:
        """Begin with what the node said first.

        Args:
            hello: Its words.
            understanding: What may be said to it.
            scope: What it is sent something of.
            surroundings: What it shares with the other streams.
            now_s: Now.
            lives_s: After how long the stream is to be exchanged for another one.
        """
        super().__init__(
            hello,
            understanding,
            scope,
            interval_s=surroundings.interval_s,
            now_s=now_s,
            lives_s=lives_s,
        )
        self._around = surroundings
        self._bundler = Bundler(surroundings.open_secret, understanding.sealing_key)
        self._wants_everything = False
        self._is_greeted = False
        self._is_epoch_checked = False
        self._newest: Snapshot | None = None
        self._outstanding: _Outstanding | None = None
        self._last_transfer_id = 0
        self._catches_up_until_s: float | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the last refused transfer, while its content is still the newest."""
        if self._newest is None or self.refused != self.wanted:
            return ()
        return self.refusal_problems

    @property
    def wanted(self) -> Position:
        """The newest position in the node's scope; an empty one before anything was published."""
        return self._newest.position_in(self.organization_ids) if self._newest else Position()

    @property
    def behind_since_s(self) -> float | None:
        """When the oldest thing was published that the node lacks; None when it has the newest."""
        if self._newest is None or self.applied == self.wanted:
            return None
        since_s = self._around.publications.first_after(self.applied)
        return self.connected_at_s if since_s is None else since_s

    def end(self, reason: str, ending: Ending = Ending.UNAVAILABLE) -> None:
        """Ask for the stream to be closed; the first reason counts."""
        super().end(reason, ending)
        self._around.gate.leave(self)

    def offer(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the newest; it replaces one that was not sent yet."""
        self._newest = snapshot
        self.wake.set()

    def admit(self) -> None:
        """Look whether everything may be sent now."""
        self.wake.set()

    def check_epoch(self) -> None:
        """Note that the database was asked since the node came: it has no later epoch than the published one."""
        self._is_epoch_checked = True
        self.wake.set()

    # ── What to say ──────────────────────────────────────────────────────────────────────────

    def next_message(self, now_s: float) -> Message | None:
        """Return what to say now.

        None when there is nothing before `idle_s`, or `wake`: if that is set already, others should have their turn first.
        """
        is_sending = self._outstanding is not None and not self._outstanding.is_sent
        aside = self._next_aside(now_s, self.wanted, is_sending=is_sending)
        if aside is not None:
            return aside
        if self._outstanding is None or self._is_overdue(self._outstanding, now_s):
            self._outstanding = self._next_outstanding(now_s)
        return self._next_part(now_s)

    def idle_s(self, now_s: float) -> float:
        """Return how long there is nothing to say unless `wake` is set, in seconds."""
        at_s = self._aside_at_s()
        if self._catches_up_until_s is not None:
            at_s = min(at_s, self._catches_up_until_s)
        return max(0.0, at_s - now_s)

    def _next_part(self, now_s: float) -> Message | None:
        outstanding = self._outstanding
        if outstanding is None or outstanding.is_sent:
            return None
        message = next(outstanding.transfer.messages)
        if message is None:
            self.wake.set()
        elif isinstance(message, bytes):
            self._around.tally.transfer_bytes_total += len(message)
        elif message.HasField("transfer_end"):
            outstanding.is_sent = True
            outstanding.sent_at_s = now_s
            self._around.gate.leave(self)
        return message

    def _is_overdue(self, outstanding: _Outstanding, now_s: float) -> bool:
        transfer = outstanding.transfer
        patience_s = ANSWER_PATIENCE_S + transfer.resource_count / SLOWEST_APPLIED_PER_S
        return (
            outstanding.is_sent
            and now_s - outstanding.sent_at_s > patience_s
            and self.wanted != transfer.to
        )

    def _next_outstanding(self, now_s: float) -> _Outstanding | None:
        snapshot = self._newest
        if snapshot is None or self.is_leaving or self.ended.done():
            return None
        # The first transfer comes in any case: a node that is up to date is told so.
        is_known = self._is_greeted and self.wanted in (self.applied, self.refused)
        if is_known and not self._wants_everything:
            return None
        if is_ahead(self.applied, self.wanted, is_epoch_checked=self._is_epoch_checked):
            self._wait_to_catch_up(now_s)
            return None
        self._catches_up_until_s = None
        decision = decide(
            snapshot,
            self.organization_ids,
            self.applied,
            has_delta=self.understanding.has_delta,
            wants_everything=self._wants_everything,
        )
        if decision.intent != pb.TRANSFER_INTENT_FULL:
            self._around.gate.leave(self)
        elif not self._around.gate.enter(self):
            return None
        return _Outstanding(self._begin(snapshot, decision))

    def _wait_to_catch_up(self, now_s: float) -> None:
        """End the stream if this control plane is behind the node for long: it is never sent anything older."""
        if self._catches_up_until_s is None:
            self._catches_up_until_s = now_s + CATCH_UP_S
            self._around.on_ahead(self.applied)
        elif now_s >= self._catches_up_until_s:
            self.end("this control plane is behind the node")

    def _begin(self, snapshot: Snapshot, decision: Decision) -> Transfer:
        self._is_greeted = True
        self._wants_everything = False
        self._last_transfer_id += 1
        self._around.tally.transfers_total[_INTENTS[decision.intent]] += 1
        if decision.intent == pb.TRANSFER_INTENT_NONE:
            return empty_transfer(self._last_transfer_id, self.wanted)
        force = snapshot.has_mass_deletion_since(self.applied, self.organization_ids)
        if decision.difference is not None:
            return delta_transfer(
                self._last_transfer_id,
                decision.difference,
                self.applied,
                self.wanted,
                self._bundler,
                force=force,
            )
        return full_transfer(
            self._last_transfer_id,
            snapshot,
            self.organization_ids,
            decision.reason,
            self._bundler,
            force=force,
        )

    # ── What was heard ───────────────────────────────────────────────────────────────────────

    def hear_ack(self, ack: pb.Ack) -> None:
        """Note that a transfer is in force; answers to others than the running one are dropped.

        A node that claims another position than it was given did not apply it: that is a refusal.
        """
        transfer = self._answered(ack.transfer_id)
        if transfer is None:
            return
        applied = position_from_proto(ack.applied)
        if applied == transfer.to:
            self.note_applied(applied, ack)
        else:
            self._refuse(transfer, applied, "position", ("acknowledged another position",))

    def hear_nack(self, nack: pb.Nack) -> None:
        """Note that a transfer was refused: it is not sent again until something newer is there.

        Everything is sent instead where the node says that a transfer does not fit what it has.
        """
        transfer = self._answered(nack.transfer_id)
        if transfer is not None:
            applied = position_from_proto(nack.applied)
            self._refuse(transfer, applied, refusal_of(nack), tuple(nack.problems))

    def hear_heartbeat(self, heartbeat: pb.Heartbeat) -> None:
        """Note where the node stands; one that stands elsewhere than it said gets a transfer."""
        if heartbeat.HasField("position") and self._outstanding is None:
            self.applied = position_from_proto(heartbeat.position)
        self.note_heartbeat(heartbeat)
        self.wake.set()

    def _answered(self, transfer_id: int) -> Transfer | None:
        outstanding = self._outstanding
        if outstanding is None or outstanding.transfer.transfer_id != transfer_id:
            return None
        # A node may refuse a transfer before its end; the rest of it is not sent any more.
        self._outstanding = None
        self._around.gate.leave(self)
        self.wake.set()
        return outstanding.transfer

    def _refuse(
        self, transfer: Transfer, applied: Position, refusal: str, problems: tuple[str, ...]
    ) -> None:
        self.note_refused(transfer.to, applied, refusal, problems)
        self._around.tally.nacks_total[refusal] += 1
        is_unfit = refusal in ("position", "digest")
        self._wants_everything = is_unfit and transfer.intent != pb.TRANSFER_INTENT_FULL
