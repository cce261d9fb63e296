"""`status`: how the service is, and what its operator has to do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from tollkeeper.admin.v1.node_service_pb2 import ListNodesResponse, Node, Staleness
from tollkeeper.admin.v1.operations_service_pb2 import ServiceStatus
from tollkeeper.common.v1.errors_pb2 import ErrorReason
from tollkeeper.common.v1.position_pb2 import Position

from controlplane.cli.status_report import (
    Gateway,
    control_plane_row,
    data_plane_row,
    faults,
    remarks,
)
from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane

CURRENT = Position(config_epoch="e", revision=9, digest=b"\x0d")
PART = Position(config_epoch="e", revision=9, digest=b"\x0f")


def service_status(**changes: object) -> ServiceStatus:
    status = ServiceStatus(
        control_plane_id="cp1",
        version="1.2.3",
        uptime_seconds=3600,
        database="sqlite",
        database_ms=0.25,
        schema="0002",
        position=CURRENT,
    )
    status.MergeFrom(ServiceStatus(**changes))  # type: ignore[arg-type]  # fields by name
    return status


def node(node_id: str = "n1", **changes: object) -> Node:
    made = Node(node_id=node_id, version="1.2.3", applied=CURRENT)
    made.MergeFrom(Node(**changes))  # type: ignore[arg-type]  # fields by name
    return made


def nodes(*each: Node) -> ListNodesResponse:
    return ListNodesResponse(current=CURRENT, nodes=each)


@contextmanager
def gateway(status: int) -> Iterator[str]:
    """A data plane that answers its health path with a status; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/base/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="gateway")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/base/"
        finally:
            server.shutdown()
            thread.join(10)


def test_a_service_that_is_well_is_shown_whole_and_is_exit_code_0(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    well = node(
        staleness=Staleness.STALENESS_FRESH, apply_ms=4, control_plane_id="cp1", wanted=CURRENT
    )
    well.heard_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=3))
    control_plane.will_answer("GetServiceStatus", service_status())
    control_plane.will_answer("ListNodes", nodes(well))

    result = run("status", "-o", "json")

    shown = json.loads(result.stdout)
    (data_plane,) = shown["data_planes"]
    assert (result.exit_code, result.stderr) == (0, "")
    assert shown["control_plane"] == {
        "address": control_plane.address,
        "id": "cp1",
        "version": "1.2.3",
        "uptime_seconds": 3600,
        "database": "sqlite",
        "database_ms": 0.25,
        "schema": "0002",
        "revision": 9,
        "digest": "0d",
        "pending_devices": 0,
        "paused": False,
        "problems": [],
    }
    assert 3000 <= data_plane.pop("heard_ms_ago") < 60_000
    assert data_plane == {
        "node": "n1",
        "version": "1.2.3",
        "revision": 9,
        "digest": "0d",
        "is_current": True,
        "lag_revisions": 0,
        "lag_ms": 0,
        "staleness": "fresh",
        "apply_ms": 4,
        "refused_at": None,
        "refusal": None,
        "control_plane": "cp1",
        "connected_at": None,
        "organizations": [],
        "redis": "ok",
        "maintains_counters": False,
        "not_ready": None,
        "unreported_records": 0,
        "oldest_unreported_at": None,
        "quarantined": [],
        "problems": [],
    }
    assert shown["gateway"] is None


def test_people_see_two_tables_and_a_sentence_for_what_is_wrong(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetServiceStatus", service_status(pending_devices=2))
    control_plane.will_answer("ListNodes", nodes(node(limits_unavailable=True)))

    result = run("status")

    first, second = result.stdout.split("\n\n")
    assert ["database_ms", "0.25"] in [line.split() for line in first.splitlines()]
    heading, _, row = second.splitlines()
    assert heading.split()[:4] == ["node", "version", "revision", "is_current"]
    assert row.split()[:4] == ["n1", "1.2.3", "9", "yes"]
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "n1 cannot read its counters in Redis",
        "2 devices wait for approval: tollkeeper device list --status pending_approval",
    ]


def test_a_change_that_is_still_on_its_way_is_waited_for(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    behind = node(applied=Position(config_epoch="e", revision=8, digest=b"\x0c"))
    control_plane.will_answer("GetServiceStatus", service_status())
    control_plane.will_answer("ListNodes", nodes(behind), nodes(node()))

    result = run("status", "-o", "json")

    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["data_planes"][0]["is_current"] is True


def test_a_node_that_stays_behind_is_named_after_two_seconds(
    run: Run, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.cli.status._SETTLING_S", 0.0)
    behind = node(applied=Position(config_epoch="e", revision=7, digest=b"\x0c"))
    control_plane.will_answer("GetServiceStatus", service_status())
    control_plane.will_answer("ListNodes", nodes(behind))

    result = run("status", "-o", "json")

    (data_plane,) = json.loads(result.stdout)["data_planes"]
    assert (data_plane["is_current"], data_plane["lag_revisions"]) == (False, 2)
    assert (result.exit_code, result.stderr) == (1, "n1 is 2 revisions behind\n")


@pytest.mark.parametrize(
    ("status", "exit_code", "sentence"),
    [(200, 0, None), (503, 1, "is not ready: HTTP 503"), (404, 1, "is not ready: HTTP 404")],
)
def test_the_gateway_of_the_settings_is_asked_too(
    run: Run,
    control_plane: ScriptedControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    exit_code: int,
    sentence: str | None,
) -> None:
    control_plane.will_answer("GetServiceStatus", service_status())
    control_plane.will_answer("ListNodes", nodes(node()))

    with gateway(status) as url:
        monkeypatch.setenv("TOLLKEEPER_URL", url)
        result = run("status", "-o", "json")

    assert json.loads(result.stdout)["gateway"] == {
        "url": url,
        "is_ready": status == 200,
        "http_status": status,
    }
    assert result.exit_code == exit_code
    assert result.stderr == (f"{url} {sentence}\n" if sentence else "")


def test_a_gateway_that_is_away_is_shown_and_said(
    run: Run, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway(200) as url:
        pass
    monkeypatch.setenv("TOLLKEEPER_URL", url)
    control_plane.will_answer("GetServiceStatus", service_status())
    control_plane.will_answer("ListNodes", nodes(node()))

    result = run("status")

    assert result.exit_code == 1
    assert "http_status" in result.stdout
    assert result.stderr == f"{url} cannot be reached\n"


def test_a_control_plane_that_refuses_leaves_the_gateways_word(
    run: Run, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_plane.will_answer("GetServiceStatus", Refusal(grpc.StatusCode.UNAVAILABLE, "gone"))

    with gateway(200) as url:
        monkeypatch.setenv("TOLLKEEPER_URL", url)
        result = run("status", "-o", "json")

    assert (result.exit_code, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first.startswith("cannot reach the control plane")
    assert second == f"{url} is ready"


@pytest.mark.parametrize(
    ("each", "sentences"),
    [
        ([node()], []),
        ([], ["no data plane is connected"]),
        (
            [node(not_ready=ErrorReason.ERROR_REASON_LIMITS_UNAVAILABLE)],
            ["no connected data plane is serving", "n1 is not serving: limits_unavailable"],
        ),
        ([node(not_ready=ErrorReason.ERROR_REASON_DRAINING), node("n2")], []),
        (
            [node(problems=["router r1 names no provider"])],
            ["n1 refused the newest configuration: router r1 names no provider"],
        ),
        (
            [node(quarantined=["device d1: bad digest"])],
            ["n1 cannot read a resource, and denies its calls: device d1: bad digest"],
        ),
        ([node(applied=Position(revision=8))], ["n1 is 1 revision behind"]),
        ([node(applied=Position(revision=12))], ["n1 is 3 revisions ahead of this control plane"]),
        (
            [node(applied=Position(digest=b"\x0f"))],
            ["n1 has another content of the newest revision"],
        ),
        (
            [node(applied=Position(revision=8), lag_ms=26 * 3_600_000, refusal="guard")],
            ["n1 is 1 revision behind, for 26 h, and refused a transfer: guard"],
        ),
        # Of some organizations only: its digest is not that of everything.
        ([node(applied=PART, wanted=PART)], []),
        (
            [node(wanted=PART)],
            ["n1 has another content of the newest revision"],
        ),
        (
            [node(applied=Position(config_epoch="other"))],
            ["n1 has the configuration of another database"],
        ),
    ],
)
def test_what_needs_the_operator_is_a_sentence(each: list[Node], sentences: list[str]) -> None:
    assert faults(service_status(), nodes(*each), None) == sentences


def test_content_that_is_not_published_needs_the_operator() -> None:
    status = service_status(problems=["rule r1 names no provider"])

    assert faults(status, nodes(node()), Gateway("http://h", 200)) == [
        "the newest configuration is not published: rule r1 names no provider"
    ]


def test_what_is_as_it_should_be_is_no_more_than_a_remark() -> None:
    draining = node(not_ready=ErrorReason.ERROR_REASON_DRAINING)

    assert remarks(service_status(), nodes(node())) == []
    assert remarks(service_status(pending_devices=1), nodes(draining)) == [
        "n1 is draining",
        "1 device waits for approval: tollkeeper device list --status pending_approval",
    ]


def test_a_pause_of_the_service_is_shown_with_how_it_ends() -> None:
    assert remarks(service_status(paused=True), nodes(node())) == [
        "the service is paused, every call is refused: tollkeeper service resume"
    ]
    assert control_plane_row(service_status(paused=True), "h:1")["paused"] is True


def test_the_node_that_maintains_the_counters_is_told_apart() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    maintainer = node(maintains_counters=True)
    maintainer.oldest_unreported_at.FromDatetime(now)

    shown = data_plane_row(maintainer, CURRENT, now)

    assert shown["maintains_counters"] is True
    assert shown["oldest_unreported_at"] == "2026-11-21T12:00:00Z"


def test_a_node_of_another_clock_was_heard_just_now() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    heard = node()
    heard.heard_at.FromDatetime(now + timedelta(seconds=5))

    assert data_plane_row(heard, CURRENT, now)["heard_ms_ago"] == 0
    assert data_plane_row(node(), CURRENT, now)["heard_ms_ago"] is None


def test_a_node_of_a_part_of_the_organizations_is_compared_with_its_part() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    seen = node(applied=PART, wanted=PART, organizations=["acme"], staleness=2, refusal="digest")

    shown = data_plane_row(seen, CURRENT, now)

    assert (shown["is_current"], shown["lag_revisions"]) == (True, 0)
    assert (shown["organizations"], shown["staleness"], shown["refusal"]) == (
        ["acme"],
        "stale",
        "digest",
    )
