"""`--wait` of commands that change the configuration."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import click
import grpc
import pytest
import typer
from tollkeeper.admin.v1.changes_pb2 import AppliedChange, DeleteResult, Propagation
from tollkeeper.admin.v1.device_service_pb2 import RotateSessionTokenResponse
from tollkeeper.admin.v1.limit_service_pb2 import SubjectLimits
from tollkeeper.admin.v1.organization_service_pb2 import Organization
from tollkeeper.admin.v1.tier_service_pb2 import DeleteTierRequest
from tollkeeper.admin.v1.user_service_pb2 import User

from controlplane.cli.app import app
from controlplane.cli.waiting import Waiting
from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane

RunJson = Callable[..., Any]
APPLIED = AppliedChange(node="n1", ms=12)
EVERYWHERE = Propagation(revision=7, applied=[APPLIED])
SOMEWHERE = Propagation(revision=7, applied=[APPLIED], missing=["n2", "n3"])
DEVICE = "3k2v9q0m5t7x"

COMMANDS: dict[str, tuple[str, ...]] = {
    "budget override": ("--global", "--daily-budget-usd", "1", "--for", "1h"),
    "budget reset": ("--global",),
    "config rollback": ("41",),
    "credential create": ("acme/up/main", "--secret-stdin"),
    "credential delete": ("acme/up/main",),
    "credential rotate": ("acme/up/main", "--secret-stdin"),
    "device approve": (DEVICE, "--user", "acme/alice"),
    "device delete": (DEVICE,),
    "device reject": (DEVICE,),
    "device resume": (DEVICE,),
    "device rotate": (DEVICE,),
    "device suspend": (DEVICE,),
    "device update": (DEVICE, "--name", "phone"),
    "key create": ("acme/alice/laptop",),
    "key delete": ("acme/alice/laptop",),
    "key update": ("acme/alice/laptop", "--tier", "none"),
    "limit delete": ("--global",),
    "limit override": ("--global", "--requests-per-day", "1", "--for", "1h"),
    "limit reset": ("--global",),
    "limit set": ("--global", "--requests-per-day", "1"),
    "org create": ("acme",),
    "org delete": ("acme",),
    "org update": ("acme", "--paused"),
    "price delete": ("7c1v5n0p3t8w",),
    "price set": ("--provider", "mock", "--model", "free-*", "--free"),
    "provider create": ("acme/up", "--kind", "openai"),
    "provider delete": ("acme/up",),
    "provider update": ("acme/up", "--base-url", "openai=https://example.com/v1"),
    "router create": ("acme/r1",),
    "router delete": ("acme/r1",),
    "router update": ("acme/r1", "--gateway-metadata"),
    "rule create": ("acme/r1", "--priority", "1", "--provider", "acme/up", "--models", "*"),
    "rule delete": ("4f9k2m1x8q0z",),
    "rule update": ("4f9k2m1x8q0z", "--weight", "3"),
    "service pause": (),
    "service resume": (),
    "tier create": ("trial", "--device-requests-per-day", "1"),
    "tier delete": ("trial",),
    "tier update": ("trial", "--device-requests-per-day", "1"),
    "user activate": ("acme/alice",),
    "user create": ("acme/alice",),
    "user delete": ("acme/alice",),
    "user reset-quota": ("acme/alice",),
    "user suspend": ("acme/alice",),
    "user update": ("acme/alice", "--email", "a@example.com"),
}


def commands_that_wait() -> Iterator[str]:
    for noun, group in typer.main.get_group(app).commands.items():
        for verb, command in getattr(group, "commands", {}).items():
            if any(_is_wait_for_a_change(each) for each in command.params):
                yield f"{noun} {verb}"


def _is_wait_for_a_change(parameter: click.Parameter) -> bool:
    return parameter.name == "wait" and "apply it" in (getattr(parameter, "help", "") or "")


def test_the_commands_below_are_all_that_wait() -> None:
    assert set(commands_that_wait()) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_change_is_waited_for_and_says_who_has_applied_it(
    run_json: RunJson, control_plane: ScriptedControlPlane, command: str
) -> None:
    words = [*command.split(), *COMMANDS[command], "--wait", "5s"]
    first = run_json(*words, stdin="sk-secret-of-a-provider\n")
    changes = [each for each in control_plane.asked if "wait_for_propagation" in fields_of(each)]
    answer_type = answer_type_of(changes[-1].request)
    control_plane.asked.clear()
    control_plane.will_answer(changes[-1].rpc, answer_type(propagation=SOMEWHERE))

    printed = run_json(*words, stdin="sk-secret-of-a-provider\n")

    asked = control_plane.asked[-1]
    assert asked.request.wait_for_propagation.ToTimedelta() <= timedelta(seconds=5)
    assert asked.request.wait_for_propagation.ToTimedelta() > timedelta(seconds=1)
    # The control plane has all of that time, and its usual time on top.
    assert asked.remaining_s > 10
    assert printed.pop("propagation") == {
        "revision": 7,
        "applied": [{"node": "n1", "ms": 12}],
        "missing": ["n2", "n3"],
    }
    assert printed.keys() == first.keys()


def answer_type_of(request: Any) -> Any:  # Any: messages of any method
    (answer,) = (
        method.output_type._concrete_class
        for service in request.DESCRIPTOR.file.services_by_name.values()
        for method in service.methods
        if method.input_type is request.DESCRIPTOR
    )
    return answer


def fields_of(asked: Any) -> dict[str, Any]:  # Any: a request of any method
    return dict(asked.request.DESCRIPTOR.fields_by_name)


def test_what_is_missing_is_no_failure_and_is_named_on_stderr(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("DeleteUser", DeleteResult(revision=7, propagation=SOMEWHERE))

    result = run("user", "delete", "acme/alice", "--wait", "1s", "-o", "json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["propagation"]["missing"] == ["n2", "n3"]
    assert result.stderr == "Changed, but not yet applied by: n2, n3\n"


def test_people_see_the_resource_as_ever_and_who_has_it_beside(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    for propagation in (None, EVERYWHERE, Propagation(revision=7)):
        answer = Organization(name="acme", propagation=propagation)
        control_plane.will_answer("CreateOrganization", answer)

    plain = run("org", "create", "acme")
    waited = run("org", "create", "acme", "--wait", "1s")
    alone = run("org", "create", "acme", "--wait", "1s")

    assert plain.stdout == waited.stdout == alone.stdout
    assert "propagation" not in plain.stdout
    assert plain.stderr == ""
    assert waited.stderr == "Applied by: n1 (12 ms)\n"
    assert alone.stderr == "Changed; no data plane is connected.\n"


def test_without_the_option_nothing_is_waited_for_or_shown(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("CreateUser", User(name="acme/alice"))

    printed = run_json("user", "create", "acme/alice")

    assert not control_plane.only_request().HasField("wait_for_propagation")
    assert "propagation" not in printed


def test_a_command_of_two_changes_waits_once_for_both(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("SetLimits", SubjectLimits(propagation=SOMEWHERE))
    control_plane.will_answer("UpdateOrganization", Organization(propagation=EVERYWHERE))

    printed = run_json("org", "update", "acme", "--paused", "--daily-requests", "1", "--wait", "3s")

    first, second = (
        each.request.wait_for_propagation.ToTimedelta() for each in control_plane.asked
    )
    assert timedelta(seconds=3) >= first > second > timedelta(0)
    # The last is the newest: who has it has both.
    assert printed["propagation"]["missing"] == []


def test_what_is_left_of_a_wait_is_never_nothing() -> None:
    now_s = [100.0]
    waiting = Waiting(timedelta(seconds=2), lambda: now_s[0])
    asked = DeleteTierRequest()

    assert waiting.ask(asked) == timedelta(seconds=2)
    now_s[0] += 5
    assert waiting.ask(asked) == timedelta(milliseconds=1)
    assert asked.wait_for_propagation.ToTimedelta() == timedelta(milliseconds=1)


def test_an_older_control_plane_is_said_not_to_know(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    result = run("router", "create", "acme/r1", "--wait", "1s")

    assert result.exit_code == 0
    assert "does not say which data planes" in result.stderr
    assert len(control_plane.asked) == 1


def test_a_change_that_was_refused_is_told_as_ever(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "CreateRouter", Refusal(grpc.StatusCode.ALREADY_EXISTS, "there is one", "ALREADY_EXISTS")
    )

    result = run("router", "create", "acme/r1", "--wait", "1s")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: already_exists: there is one\n"


@pytest.mark.parametrize("wait", ["61s", "0s", "soon"])
def test_a_wait_is_between_a_moment_and_a_minute(run: Run, wait: str) -> None:
    assert run("router", "create", "acme/r1", "--wait", wait).exit_code == 2


def test_a_session_token_is_shown_beside_who_knows_it(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "RotateSessionToken", RotateSessionTokenResponse(session_token="s", propagation=EVERYWHERE)
    )

    printed = run_json("device", "rotate", DEVICE, "--wait", "1s")

    assert printed["session_token"] == "s"
    assert printed["propagation"]["applied"] == [{"node": "n1", "ms": 12}]
