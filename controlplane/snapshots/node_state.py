"""What a node said of itself on its stream, and what it refused."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.common.v1 import errors_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import Scope
from controlplane.snapshots.snapshot import Position, position_from_proto

_MAX_PROBLEMS: Final = 20
_MAX_QUARANTINED: Final = 100
_MAX_TEXT: Final = 500

_REFUSALS: Final = {
    pb.NACK_REASON_DIGEST: "digest",
    pb.NACK_REASON_POSITION: "position",
    pb.NACK_REASON_INVALID: "invalid",
    pb.NACK_REASON_GUARD: "guard",
}
UNKNOWN_REFUSAL: Final = "unknown"


class NodeState:
    """One node as it is known from one stream. Texts and lists of a node are cut to a bound."""

    def __init__(self, hello: pb.Hello, scope: Scope, *, now_s: float) -> None:
        self.node_id = hello.node_id
        self.version = hello.version
        self.boot_id = hello.boot_id
        self.organization_ids = scope
        """Its scope; empty means all."""
        self.applied = position_from_proto(hello.applied)
        self.connected_at = datetime.now(UTC)
        self.connected_at_s = now_s
        self.heard_at_s = now_s
        self.not_ready: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_UNSPECIFIED
        self.unreported_records = 0
        self.limits_unavailable = False
        self.maintains_counters = False
        self.oldest_unreported_at: datetime | None = None
        self.quarantined: tuple[str, ...] = ()
        self.apply_ms = 0
        """How long it took to apply the last transfer."""
        self.refused: Position | None = None
        """What it refused, if it has applied nothing since."""
        self.refused_at: datetime | None = None
        self.refusal = ""
        """Why it refused last: `invalid`, `guard`, `digest`, `position`, or `unknown`; empty when it never did."""
        self.refusal_problems: tuple[str, ...] = ()

    def note_heartbeat(self, heartbeat: pb.Heartbeat) -> None:
        """Note how it does; where it stands is another matter."""
        self.not_ready = heartbeat.not_ready
        self.unreported_records = heartbeat.unreported_records
        self.limits_unavailable = heartbeat.limits_unavailable
        self.maintains_counters = heartbeat.maintains_counters
        is_behind = heartbeat.HasField("oldest_unreported_at")
        self.oldest_unreported_at = _instant(heartbeat.oldest_unreported_at) if is_behind else None

    def note_applied(self, applied: Position, ack: pb.Ack) -> None:
        """Note that a transfer is in force."""
        self.applied = applied
        self.refused = None
        self.apply_ms = max(0, ack.apply_ms)
        self.quarantined = tuple(
            f"{ResourceKey(each.resource.kind, each.resource.id)}: {each.detail[:_MAX_TEXT]}"
            for each in ack.quarantined[:_MAX_QUARANTINED]
        )

    def note_refused(
        self, refused: Position, applied: Position, refusal: str, problems: Iterable[str]
    ) -> None:
        """Note that a transfer to `refused` was refused, and what is in force instead."""
        self.applied = applied
        self.refused = refused
        self.refused_at = datetime.now(UTC)
        self.refusal = refusal
        cut = tuple(problem[:_MAX_TEXT] for problem in list(problems)[:_MAX_PROBLEMS])
        self.refusal_problems = cut or (refusal,)


def refusal_of(nack: pb.Nack) -> str:
    """Return the word for why a transfer was refused; `UNKNOWN_REFUSAL` for reasons of newer nodes."""
    return _REFUSALS.get(nack.reason, UNKNOWN_REFUSAL)


def _instant(timestamp: Timestamp) -> datetime | None:
    """Return an instant of a node's; None for one that no clock shows."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
