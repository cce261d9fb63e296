"""What the readiness path tells: why not, how old the configuration is, and who was heard."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Position
from dataplane.domain.staleness import EXPIRES_MS
from dataplane.freshness import Freshness
from dataplane.http.health import Health


@dataclass
class Snapshot:
    position: Position = field(default_factory=lambda: Position("e", 7, bytes(32)))
    has_fail_open: bool = False
    applied_at_ms: int = 999_000


@dataclass
class Stream:
    is_connected: bool = False
    control_plane_id: str = "cp1"
    heard_at: float | None = 1_000.0
    known_epoch: str = "e"
    known_revision: int = 7
    quarantined: int = 3


@dataclass
class Scene:
    """Stands for the pipeline, which is asked for three things only."""

    snapshot: Snapshot | None = field(default_factory=Snapshot)
    limits_state: str = "closed"
    is_draining: bool = False
    in_flight: int = 2
    now: float = 1_000.0
    stream: Stream = field(default_factory=Stream)

    @property
    def current(self) -> "Scene":
        return self

    def get(self) -> Snapshot:
        if self.snapshot is None:
            raise Refusal(Reason.CONFIGURATION_UNAVAILABLE, "none")
        return self.snapshot

    def clock_ms(self) -> int:
        return 1_000_000

    def ready(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        latest: Any = lambda: self.snapshot  # noqa: E731 - a stand-in for a bound method
        freshness = Freshness(self.stream, latest, lambda: self.now)
        health = Health(cast("Any", self), "1.2.3", lambda: self.limits_state, lambda: 5, freshness)
        answer = health.ready()
        return answer.status, dict(answer.headers), json.loads(answer.body)


def test_a_ready_process_says_what_it_serves_and_whom_it_heard() -> None:
    status, headers, body = Scene().ready()

    assert (status, "retry-after" in headers) == (200, False)
    assert body == {
        "status": "ready",
        "version": "1.2.3",
        "limits": "closed",
        "redis": "ok",
        "breakers": {"redis": "closed"},
        "unreported_records": 5,
        "in_flight": 2,
        "configuration": {
            "epoch": "e",
            "revision": 7,
            "age_ms": 1_000,
            "staleness": "fresh",
            "quarantined": 3,
        },
        "control_plane": {"id": "cp1", "is_connected": False, "heard_ms_ago": 0},
    }


@pytest.mark.parametrize(
    ("unheard_s", "staleness", "warns"),
    [(14, "fresh", False), (16, "stale", False), (EXPIRES_MS / 1000, "expired", True)],
)
def test_however_long_the_control_plane_is_away_it_stays_ready(
    unheard_s: float, staleness: str, warns: bool
) -> None:
    scene = Scene()
    scene.now += unheard_s

    status, _, body = scene.ready()

    assert (status, body["status"]) == (200, "ready")
    assert body["configuration"]["staleness"] == staleness
    assert ("warning" in body) is warns


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"snapshot": None}, "configuration_unavailable"),
        ({"limits_state": "open"}, "limits_unavailable"),
        ({"limits_state": "cold"}, "limits_unavailable"),
        ({"is_draining": True}, "draining"),
        ({"is_draining": True, "snapshot": Snapshot(has_fail_open=True)}, "draining"),
    ],
)
def test_who_is_not_ready_says_why_and_when_to_ask_again(
    changes: dict[str, Any], code: str
) -> None:
    status, headers, body = Scene(**changes).ready()

    assert (status, body["status"], body["code"]) == (503, "not_ready", code)
    assert headers["retry-after"] == "1"


def test_an_organization_that_is_served_without_counters_keeps_it_ready() -> None:
    status, _, body = Scene(limits_state="open", snapshot=Snapshot(has_fail_open=True)).ready()

    assert (status, body["redis"], body["breakers"]) == (200, "unavailable", {"redis": "open"})


def test_counters_that_are_rebuilt_are_no_outage_of_redis() -> None:
    _, _, body = Scene(limits_state="cold").ready()

    assert (body["limits"], body["redis"], body["breakers"]["redis"]) == ("cold", "ok", "closed")
