"""What people read."""

import json

from tollkeeper.admin.v1.limit_service_pb2 import SubjectLimits
from tollkeeper.admin.v1.organization_service_pb2 import ListOrganizationsResponse, Organization
from tollkeeper.admin.v1.router_service_pb2 import Router, Rule
from tollkeeper.admin.v1.usage_service_pb2 import ListRequestsResponse
from tollkeeper.common.v1.limits_pb2 import Limit, LimitUnit, LimitWindow
from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord

from controlplane.cli.output import one_line, printable
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane


def test_a_table_has_a_heading_and_a_row_for_each_item(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListOrganizations",
        ListOrganizationsResponse(
            organizations=[
                Organization(name="acme", time_zone="Europe/Paris"),
                Organization(name="b"),
            ]
        ),
    )

    lines = [line.split() for line in run("org", "list").stdout.splitlines() if line.strip()]

    assert lines[0] == ["name", "id", "time_zone", "on_limits_unavailable", "paused"]
    assert lines[-2] == ["acme", "-", "Europe/Paris", "-", "no"]
    assert lines[-1] == ["b", "-", "-", "-", "no"]


def test_a_table_in_a_pipe_is_not_folded(run: Run, control_plane: ScriptedControlPlane) -> None:
    name = "a" * 500
    control_plane.will_answer("GetOrganization", Organization(name=name))

    assert name in run("org", "get", "x").stdout


def test_a_table_shows_money_in_dollars_and_json_in_nanodollars(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    page = ListRequestsResponse(requests=[UsageRecord(request_id="r", cost_nanousd=1_230_000_001)])
    control_plane.will_answer("ListRequests", page, page)

    table, document = run("logs"), run("logs", "-o", "json")

    assert "cost_usd" in table.stdout
    assert "1.230000001" in table.stdout
    assert json.loads(document.stdout)[0]["cost_nanousd"] == 1_230_000_001


def test_limits_are_shown_one_a_row(run: Run, control_plane: ScriptedControlPlane) -> None:
    limits = [
        Limit(
            unit=LimitUnit.LIMIT_UNIT_SPEND,
            window=LimitWindow.LIMIT_WINDOW_MONTH,
            capacity=50_000_000,
        ),
        Limit(
            unit=LimitUnit.LIMIT_UNIT_TOKENS, window=LimitWindow.LIMIT_WINDOW_DAY, unlimited=True
        ),
    ]
    control_plane.will_answer("GetLimits", SubjectLimits(subject="user:acme/alice", limits=limits))

    shown = run(*["limit", "get", "--user", "acme/alice"]).stdout

    assert "0.05 USD" in shown
    assert "unlimited" in shown


def test_values_within_values_are_shown_and_absent_ones_are_a_dash(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    rule = Rule(id="r1", models=["a", "b"], aliases={"fast": "x"})
    control_plane.will_answer("GetRouter", Router(rules=[rule, Rule(id="r2")]))

    first, second = run("rule", "list", "acme/r1").stdout.splitlines()[-2:]

    assert first.split() == ["r1", "-", "0", "-", "a,", "b", "0", '{"fast":', '"x"}']
    assert second.split() == ["r2", "-", "0", "-", "-", "0", "-"]


def test_what_a_client_sent_cannot_command_the_terminal(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    evil = "\x1b]0;owned\x07\x9b31m[red]bold[/red]\u202e\n"
    record = UsageRecord(request_id="r", model=evil)
    control_plane.will_answer("ListRequests", ListRequestsResponse(requests=[record]))

    shown = run("logs").stdout

    assert "[red]bold[/red]" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


def test_a_text_from_elsewhere_becomes_one_line() -> None:
    assert one_line("a\r\n\tb\x1b[0m  c") == "a b [0m c"
    assert printable("a\n\x1bb\tc", keep="\n\t") == "a\n b\tc"
