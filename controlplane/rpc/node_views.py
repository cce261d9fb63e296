"""A data plane as the admin API shows it: where it stands, and how far that is from where it should."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol

from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.common.v1 import errors_pb2

from controlplane.rpc.resources import to_timestamp
from controlplane.snapshots.snapshot import Position, position_to_proto

# 5 s: longer than a whole configuration needs to arrive; until then a node that is behind is being sent it.
SETTLING_S: Final = 5.0
# What data planes call expired, too.
EXPIRY_S: Final = 24 * 3600.0


class SeenNode(Protocol):
    """A node as the control plane sees it that holds its stream."""

    node_id: str
    version: str
    applied: Position
    heard_at_s: float
    not_ready: errors_pb2.ErrorReason.ValueType
    unreported_records: int
    limits_unavailable: bool
    maintains_counters: bool
    oldest_unreported_at: datetime | None
    quarantined: tuple[str, ...]
    apply_ms: int
    connected_at: datetime
    refused_at: datetime | None
    refusal: str

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the last refused transfer, while its content is still the newest."""
        ...

    @property
    def behind_since_s(self) -> float | None:
        """Since when something newer than what it has applied is published; None when it has the newest."""
        ...

    @property
    def organization_ids(self) -> Iterable[str]:
        """The organizations that it serves; none means all."""
        ...

    @property
    def wanted(self) -> Position:
        """The content that it should have, in its scope."""
        ...


def node_to_proto(watcher: SeenNode, now: datetime, now_s: float, control_plane_id: str) -> pb.Node:
    """Encode one node, the organizations that it serves by id; `now` and `now_s` are one instant on the two clocks."""
    oldest, refused_at = watcher.oldest_unreported_at, watcher.refused_at
    return pb.Node(
        node_id=watcher.node_id,
        version=watcher.version,
        applied=position_to_proto(watcher.applied),
        heard_at=to_timestamp(now - timedelta(seconds=now_s - watcher.heard_at_s)),
        not_ready=watcher.not_ready,
        problems=watcher.problems,
        quarantined=watcher.quarantined,
        unreported_records=watcher.unreported_records,
        limits_unavailable=watcher.limits_unavailable,
        maintains_counters=watcher.maintains_counters,
        oldest_unreported_at=to_timestamp(oldest) if oldest else None,
        lag_ms=lag_ms(watcher, now_s),
        staleness=staleness_of(watcher, now_s),
        refused_at=to_timestamp(refused_at) if refused_at else None,
        refusal=watcher.refusal,
        apply_ms=watcher.apply_ms,
        control_plane_id=control_plane_id,
        connected_at=to_timestamp(watcher.connected_at),
        organizations=sorted(watcher.organization_ids),
        wanted=position_to_proto(watcher.wanted),
    )


def lag_ms(watcher: SeenNode, now_s: float) -> int:
    """Return for how long a node is behind, in milliseconds; 0 only when it is not."""
    since_s = watcher.behind_since_s
    return 0 if since_s is None else max(1, round((now_s - since_s) * 1000))


def staleness_of(watcher: SeenNode, now_s: float) -> pb.Staleness.ValueType:
    """Return how old what a node serves is: fresh also while the newest is on its way and was not refused."""
    since_s = watcher.behind_since_s
    if since_s is None:
        return pb.STALENESS_FRESH
    if now_s - since_s >= EXPIRY_S:
        return pb.STALENESS_EXPIRED
    if watcher.problems or now_s - since_s >= SETTLING_S:
        return pb.STALENESS_STALE
    return pb.STALENESS_FRESH
