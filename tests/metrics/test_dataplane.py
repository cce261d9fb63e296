"""What a data plane shows of itself."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataplane.apply_times import measure_applies
from dataplane.changes import Changes
from dataplane.domain.histograms import Buckets
from dataplane.domain.snapshot import Position, Snapshot
from dataplane.freshness import Freshness
from dataplane.metrics import Sources, exposition


@dataclass
class Figures:
    is_connected: bool = True
    control_plane_id: str = "cp1"
    heard_at: float | None = 97.5
    known_epoch: str = "e"
    known_revision: int = 7
    quarantined: int = 2
    reconnects_total: int = 3
    transfer_bytes_total: int = 4_096
    transfers_total: dict[str, int] = field(default_factory=lambda: {"delta": 5, "full": 1})
    nacks_total: dict[str, int] = field(default_factory=lambda: {"digest": 0, "invalid": 1})
    revocations_total: int = 9
    unkept_revocations_total: int = 0


@dataclass
class Held:
    position: Position = field(default_factory=lambda: Position("e", 7, bytes(32)))
    counts: dict[int, int] = field(default_factory=lambda: {1: 1, 3: 40, 999: 2})


@dataclass
class Scene:
    figures: Figures = field(default_factory=Figures)
    held: Held = field(default_factory=Held)
    limits_state: str = "closed"
    apply_seconds: Buckets = field(default_factory=Buckets)

    def latest(self) -> Snapshot:
        snapshot: Any = type("OfAPosition", (), {"position": self.held.position})()
        return cast("Snapshot", snapshot)

    def sources(self) -> Sources:
        return Sources(
            self.figures,
            self.held,
            Freshness(self.figures, self.latest, lambda: 100.0),
            self.apply_seconds,
            lambda: self.limits_state,
            lambda: 11,
            lambda: 4,
        )


def samples(scene: Scene) -> dict[str, float]:
    """Return every sample by its name with its labels, as a scraper reads it."""
    content_type, text = exposition(scene.sources())()
    assert content_type.startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_a_scrape_shows_where_the_configuration_stands() -> None:
    scene = Scene()
    scene.apply_seconds.observe(0.02)

    shown = samples(scene)

    assert shown["tollkeeper_config_revision"] == 7
    assert shown["tollkeeper_config_digest_age_seconds"] == 2.5
    assert shown["tollkeeper_config_staleness"] == 0
    assert shown["tollkeeper_config_quarantined"] == 2
    assert shown["tollkeeper_config_connected"] == 1
    assert shown["tollkeeper_config_reconnects_total"] == 3
    assert shown["tollkeeper_config_transfer_bytes_total"] == 4_096
    assert shown["tollkeeper_config_transfers_total{intent=delta}"] == 5
    assert shown["tollkeeper_config_nacks_total{reason=invalid}"] == 1
    assert shown["tollkeeper_config_apply_seconds_count"] == 1
    assert shown["tollkeeper_config_apply_seconds_bucket{le=0.025}"] == 1
    assert shown["tollkeeper_config_apply_seconds_bucket{le=0.01}"] == 0
    assert shown["tollkeeper_revocations_total"] == 9
    assert shown["tollkeeper_unreported_records"] == 11
    assert shown["tollkeeper_requests_in_flight"] == 4


def test_resources_are_named_by_kind_and_unknown_ones_by_number() -> None:
    shown = samples(Scene())

    kinds = {name: value for name, value in shown.items() if "config_resources" in name}
    assert kinds["tollkeeper_config_resources{kind=999}"] == 2
    assert len(kinds) == 3
    assert all("unspecified" not in name for name in kinds)


@pytest.mark.parametrize("state", ["closed", "open", "cold"])
def test_the_counters_are_in_one_state(state: str) -> None:
    shown = samples(Scene(limits_state=state))

    states = {name: value for name, value in shown.items() if "limits_state" in name}
    assert sum(states.values()) == 1
    assert states[f"tollkeeper_limits_state{{state={state}}}"] == 1


def test_what_was_never_confirmed_has_no_age() -> None:
    scene = Scene()
    scene.figures.heard_at = None

    assert "tollkeeper_config_digest_age_seconds" not in samples(scene)


def test_nothing_is_named_that_there_are_many_of() -> None:
    labels = {
        label.partition("=")[0]
        for name in samples(Scene())
        if "{" in name
        for label in name.partition("{")[2].rstrip("}").split(",")
    }

    assert labels == {"intent", "kind", "le", "reason", "state"}


def test_a_scrape_holds_the_loop_for_less_than_five_milliseconds() -> None:
    expose = exposition(Scene().sources())
    expose()

    def duration() -> float:
        began = time.perf_counter()
        expose()
        return time.perf_counter() - began

    # The best of some: what else this machine does is not meant.
    assert min(duration() for _ in range(20)) < 0.005


def test_all_names_are_of_this_service_and_tell_their_unit() -> None:
    _, text = exposition(Scene().sources())()
    families: list[Any] = list(text_string_to_metric_families(text.decode()))

    assert all(family.name.startswith("tollkeeper_") for family in families)
    assert all("_ms" not in family.name for family in families)


@dataclass
class LastApply:
    applied_at_ms: int = 0
    apply_ms: int = 0


async def test_each_transfer_that_is_put_in_force_is_measured_once() -> None:
    last, changes, buckets = LastApply(), Changes(), Buckets()
    measuring = asyncio.create_task(measure_applies(last, changes, buckets))

    async def change() -> None:
        changes.note()
        for _ in range(3):
            await asyncio.sleep(0)

    await change()
    for at_ms, took_ms in ((1_000, 20), (2_000, 20), (2_000, 20), (3_000, 700)):
        last.applied_at_ms, last.apply_ms = at_ms, took_ms
        await change()
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)

    assert buckets.sum_seconds == pytest.approx(0.74)
    assert sum(buckets.counts) == 3


def test_what_is_confirmed_ages_while_something_newer_is_known() -> None:
    now = [100.0]
    scene = Scene()
    scene.figures.heard_at = 100.0
    freshness = Freshness(scene.figures, scene.latest, lambda: now[0])
    before = freshness.confirmed_seconds_ago

    now[0], scene.figures.heard_at, scene.figures.known_revision = 130.0, 129.0, 8
    behind = freshness.confirmed_seconds_ago
    scene.held.position = Position("e", 8, bytes(32))

    assert (before, behind, freshness.confirmed_seconds_ago) == (0.0, 30.0, 1.0)
