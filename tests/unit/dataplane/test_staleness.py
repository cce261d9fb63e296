"""How old what a data plane serves is, and what it says of that."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
import structlog

from dataplane.domain.snapshot import Position, Snapshot
from dataplane.domain.staleness import EXPIRES_MS, FRESH_MS, Staleness, staleness_of
from dataplane.freshness import REMINDER_SECONDS, Freshness

DAY_SECONDS = EXPIRES_MS / 1000


@dataclass
class Stream:
    is_connected: bool = False
    control_plane_id: str = ""
    heard_at: float | None = None
    known_epoch: str = ""
    known_revision: int = 0
    quarantined: int = 0


class Scene:
    """A process that began at second 1,000 and serves revision 7."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.stream = Stream()
        self.position: Position | None = Position("e", 7, bytes(32))
        self.freshness = Freshness(self.stream, self._latest, lambda: self.now)

    def _latest(self) -> Snapshot | None:
        if self.position is None:
            return None
        snapshot: Any = type("OfAPosition", (), {"position": self.position})()
        return cast("Snapshot", snapshot)


@pytest.mark.parametrize(
    ("unheard_ms", "is_newest", "expected"),
    [
        (0, True, Staleness.FRESH),
        (FRESH_MS - 1, True, Staleness.FRESH),
        (FRESH_MS, True, Staleness.STALE),
        (0, False, Staleness.STALE),
        (EXPIRES_MS - 1, True, Staleness.STALE),
        (EXPIRES_MS, True, Staleness.EXPIRED),
        (EXPIRES_MS, False, Staleness.EXPIRED),
    ],
)
def test_what_is_served_ages_while_nobody_confirms_it(
    unheard_ms: int, is_newest: bool, expected: Staleness
) -> None:
    assert staleness_of(unheard_ms, is_newest=is_newest) is expected


def test_a_control_plane_that_is_heard_again_makes_it_fresh() -> None:
    scene = Scene()
    scene.now += DAY_SECONDS
    before = (scene.freshness.staleness, scene.freshness.heard_ms_ago)

    scene.stream.heard_at = scene.now - 2

    assert before == (Staleness.EXPIRED, None)
    assert (scene.freshness.staleness, scene.freshness.heard_ms_ago) == (Staleness.FRESH, 2_000)


@pytest.mark.parametrize(
    ("epoch", "revision", "expected"),
    [
        ("", 0, Staleness.FRESH),
        ("e", 7, Staleness.FRESH),
        ("e", 6, Staleness.FRESH),
        ("e", 8, Staleness.STALE),
        ("later", 1, Staleness.STALE),
    ],
)
def test_a_newer_content_that_is_known_and_not_applied_makes_it_stale(
    epoch: str, revision: int, expected: Staleness
) -> None:
    scene = Scene()
    scene.stream.heard_at = scene.now
    scene.stream.known_epoch, scene.stream.known_revision = epoch, revision

    assert scene.freshness.staleness is expected


def test_an_expired_configuration_is_told_once_an_hour_until_it_is_fresh_again() -> None:
    scene = Scene()
    with structlog.testing.capture_logs() as logs:
        scene.freshness.remind()
        scene.now += DAY_SECONDS
        scene.freshness.remind()
        scene.now += REMINDER_SECONDS - 1
        scene.freshness.remind()
        scene.now += 1
        scene.freshness.remind()
        assert [each["event"] for each in logs] == ["configuration_expired"] * 2
        assert logs[0]["log_level"] == "error"
        assert (logs[0]["revision"], logs[0]["heard_hours_ago"]) == (7, 24)

        scene.stream.heard_at = scene.now
        scene.freshness.remind()
        scene.now += DAY_SECONDS
        scene.freshness.remind()
        assert len(logs) == 3


def test_without_a_configuration_there_is_nothing_that_expires() -> None:
    scene = Scene()
    scene.position = None
    scene.now += DAY_SECONDS

    with structlog.testing.capture_logs() as logs:
        scene.freshness.remind()

    assert logs == []
