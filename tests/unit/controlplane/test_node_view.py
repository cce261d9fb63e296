"""A node as `ListNodes` shows it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.common.v1 import errors_pb2

from controlplane.rpc.node_views import EXPIRY_S, SETTLING_S, node_to_proto, staleness_of
from controlplane.snapshots.snapshot import Position, position_to_proto

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOW_S = 1_000_000.0
APPLIED = Position("e", 8, b"\x08" * 32)
WANTED = Position("e", 9, b"\x09" * 32)


@dataclass
class Seen:
    node_id: str = "n1"
    version: str = "1"
    applied: Position = APPLIED
    heard_at_s: float = NOW_S - 2
    not_ready: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_UNSPECIFIED
    unreported_records: int = 0
    limits_unavailable: bool = False
    maintains_counters: bool = False
    oldest_unreported_at: datetime | None = None
    quarantined: tuple[str, ...] = ()
    apply_ms: int = 12
    connected_at: datetime = NOW - timedelta(hours=1)
    refused_at: datetime | None = None
    refusal: str = ""
    problems: tuple[str, ...] = ()
    behind_since_s: float | None = None
    organization_ids: tuple[str, ...] = field(default=())
    wanted: Position = WANTED


def test_a_node_that_is_behind_says_since_when_and_what_it_should_have() -> None:
    seen = Seen(
        behind_since_s=NOW_S - 1.5,
        refused_at=NOW - timedelta(seconds=1),
        refusal="invalid",
        problems=("a limit",),
        organization_ids=("o2", "o1"),
    )

    node = node_to_proto(seen, NOW, NOW_S, "cp1")

    assert (node.lag_ms, node.staleness, node.apply_ms) == (1500, pb.STALENESS_STALE, 12)
    assert (node.refusal, node.control_plane_id) == ("invalid", "cp1")
    assert node.refused_at.ToDatetime(UTC) == NOW - timedelta(seconds=1)
    assert node.connected_at.ToDatetime(UTC) == NOW - timedelta(hours=1)
    assert list(node.organizations) == ["o1", "o2"]
    assert node.wanted == position_to_proto(WANTED)


def test_a_node_that_never_refused_anything_has_no_instant_of_it() -> None:
    node = node_to_proto(Seen(), NOW, NOW_S, "cp1")

    assert not node.HasField("refused_at")
    assert (node.lag_ms, node.staleness) == (0, pb.STALENESS_FRESH)


@pytest.mark.parametrize(
    ("behind_s", "problems", "expected"),
    [
        (None, (), pb.STALENESS_FRESH),
        (0.0, (), pb.STALENESS_FRESH),
        (SETTLING_S - 0.1, (), pb.STALENESS_FRESH),
        (0.0, ("refused",), pb.STALENESS_STALE),
        (SETTLING_S, (), pb.STALENESS_STALE),
        (EXPIRY_S - 1, (), pb.STALENESS_STALE),
        (EXPIRY_S, (), pb.STALENESS_EXPIRED),
        (EXPIRY_S, ("refused",), pb.STALENESS_EXPIRED),
    ],
)
def test_a_node_is_fresh_while_the_newest_is_on_its_way(
    behind_s: float | None, problems: tuple[str, ...], expected: pb.Staleness.ValueType
) -> None:
    since_s = None if behind_s is None else NOW_S - behind_s
    assert staleness_of(Seen(behind_since_s=since_s, problems=problems), NOW_S) == expected
    # Whoever is behind at all has a lag that is not nothing.
    lag_ms = node_to_proto(Seen(behind_since_s=since_s), NOW, NOW_S, "cp").lag_ms
    assert (lag_ms == 0) is (behind_s is None)
