"""What a control plane shows of itself, and how waits are counted."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tollkeeper.common.v1 import errors_pb2

from controlplane.domain.histograms import Buckets
from controlplane.metrics import STATES, Sources, exposition
from controlplane.rpc.measuring import MeasuredRevoker
from controlplane.rpc.node_views import EXPIRY_S, SETTLING_S
from controlplane.snapshots.snapshot import Position
from tests.rpc.admin_api import RecordingRevoker

NOW_S = 5_000_000.0


@dataclass
class Node:
    node_id: str = "n1"
    version: str = "1"
    applied: Position = field(default_factory=Position)
    heard_at_s: float = NOW_S
    not_ready: errors_pb2.ErrorReason.ValueType = errors_pb2.ERROR_REASON_UNSPECIFIED
    unreported_records: int = 0
    limits_unavailable: bool = False
    maintains_counters: bool = False
    oldest_unreported_at: datetime | None = None
    quarantined: tuple[str, ...] = ()
    apply_ms: int = 0
    connected_at: datetime = datetime(2026, 11, 22, tzinfo=UTC)
    refused_at: datetime | None = None
    refusal: str = ""
    problems: tuple[str, ...] = ()
    behind_since_s: float | None = None
    organization_ids: tuple[str, ...] = ()
    wanted: Position = field(default_factory=Position)
    is_heard: bool = True

    def is_live(self, _now_s: float) -> bool:
        return self.is_heard


@dataclass
class Fleet:
    nodes: list[Node] = field(default_factory=list)
    current: Position = field(default_factory=lambda: Position("e", 12, b""))

    def watchers(self) -> list[Node]:
        return self.nodes

    def now_s(self) -> float:
        return NOW_S


@dataclass
class Tally:
    streams_total: int = 6
    transfer_bytes_total: int = 123
    transfers_total: dict[str, int] = field(default_factory=lambda: {"none": 1, "full": 2})
    nacks_total: dict[str, int] = field(default_factory=lambda: {"guard": 1})


@dataclass
class Publications:
    published_at_s: float | None = NOW_S - 3
    publish_seconds: Buckets = field(default_factory=Buckets)


def problems() -> tuple[str, ...]:
    return ("a rule names no provider",)


def samples(sources: Sources) -> dict[str, float]:
    _, text = exposition(sources)()
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.name.startswith("tollkeeper_")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def sources(*nodes: Node) -> Sources:
    revoker = MeasuredRevoker(RecordingRevoker())
    return Sources(Fleet(list(nodes)), Tally(), Publications(), problems, revoker)


def test_a_scrape_shows_what_is_published_and_sent() -> None:
    shown = samples(sources())

    assert shown["tollkeeper_config_revision"] == 12
    assert shown["tollkeeper_config_published_age_seconds"] == 3
    assert shown["tollkeeper_config_unpublished_problems"] == 1
    assert shown["tollkeeper_config_streams_total"] == 6
    assert shown["tollkeeper_config_transfers_total{intent=full}"] == 2
    assert shown["tollkeeper_config_transfer_bytes_total"] == 123
    assert shown["tollkeeper_config_nacks_total{reason=guard}"] == 1
    assert shown["tollkeeper_config_publish_seconds_count"] == 0


@pytest.mark.parametrize(
    ("node", "state"),
    [
        (Node(), "fresh"),
        (Node(behind_since_s=NOW_S), "fresh"),
        (Node(behind_since_s=NOW_S - SETTLING_S), "stale"),
        (Node(behind_since_s=NOW_S - EXPIRY_S), "expired"),
        (Node(behind_since_s=NOW_S, problems=("a limit",)), "refusing"),
        (Node(not_ready=errors_pb2.ERROR_REASON_DRAINING), "not_ready"),
        (Node(is_heard=False, not_ready=errors_pb2.ERROR_REASON_DRAINING), "silent"),
    ],
)
def test_a_node_is_counted_once_by_the_worst_that_applies(node: Node, state: str) -> None:
    shown = samples(sources(node))

    counts = {each: shown[f"tollkeeper_nodes{{state={each}}}"] for each in STATES}
    assert counts == {each: float(each == state) for each in STATES}


async def test_what_was_waited_for_is_counted_by_node() -> None:
    revoker = MeasuredRevoker(RecordingRevoker())

    await revoker.revoke(1, "k", 5, terminate_streams=False, wait_ms=100)
    await revoker.revoke(1, "k", 5, terminate_streams=False, wait_ms=0)
    propagation = await revoker.propagated(6, wait_ms=100)

    shown = samples(Sources(Fleet(), Tally(), Publications(), problems, revoker))
    assert propagation.missing == ("node-2",)
    assert shown["tollkeeper_revocation_seconds_count"] == 1
    assert shown["tollkeeper_revocation_seconds_sum"] == pytest.approx(0.007)
    assert shown["tollkeeper_propagation_seconds_count"] == 1
    assert shown["tollkeeper_propagation_missing_total"] == 2


def test_a_scrape_of_a_large_fleet_holds_the_loop_for_less_than_five_milliseconds() -> None:
    expose = exposition(sources(*(Node(str(number)) for number in range(1_000))))
    expose()

    def duration_s() -> float:
        began_s = time.perf_counter()
        expose()
        return time.perf_counter() - began_s

    assert min(duration_s() for _ in range(20)) < 0.005
