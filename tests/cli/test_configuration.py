"""`tollkeeper config`: what it asks of the control plane, and what it shows."""

from collections.abc import Callable
from typing import Any

import grpc
from tollkeeper.admin.v1 import configuration_service_pb2 as pb

from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane

RunJson = Callable[..., Any]

RENAMED = pb.RowDifference(
    kind="user",
    id="u1",
    name="acme/alice",
    fields=[pb.FieldDifference(field="email", before='""', after='"a@example.com"')],
)
DELETED = pb.RowDifference(kind="router", id="r1", name="acme/main", is_deleted=True)


def test_history_lists_revisions_of_all_pages(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListRevisions",
        pb.ListRevisionsResponse(revisions=[pb.Revision(revision=9)], next_page_token="more"),
        pb.ListRevisionsResponse(revisions=[pb.Revision(revision=8, actor="ann")]),
    )
    found = run_json("config", "history")
    assert [(each["revision"], each["actor"]) for each in found] == [(9, ""), (8, "ann")]


def test_a_difference_is_a_line_for_each_field(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "DiffRevisions", pb.DiffRevisionsResponse(differences=[RENAMED, DELETED])
    )
    result = run("config", "diff", "4", "0")
    request = control_plane.only_request()
    assert (request.from_revision, request.to_revision) == (4, 0)
    assert "a@example.com" in result.stdout
    assert "deleted" in result.stdout


def test_a_rollback_says_what_it_did_and_what_stays(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "RollbackConfiguration",
        pb.RollbackConfigurationResponse(
            revision=12, changes=[RENAMED], skipped=["api_key k1: a revoked key stays revoked"]
        ),
    )
    result = run("config", "rollback", "4")
    assert control_plane.only_request().revision == 4
    assert "acme/alice" in result.stdout
    assert "a revoked key stays revoked" in result.stderr
    assert "this is revision 12" in result.stderr


def test_a_dry_run_changes_nothing(run: Run, control_plane: ScriptedControlPlane) -> None:
    control_plane.will_answer(
        "RollbackConfiguration", pb.RollbackConfigurationResponse(revision=4, changes=[RENAMED])
    )
    result = run("config", "rollback", "4", "--dry-run")
    assert control_plane.only_request().validate_only
    assert "would change 1 thing" in result.stderr


def test_a_revision_that_is_not_kept_is_an_error(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "RollbackConfiguration", Refusal(grpc.StatusCode.NOT_FOUND, "revision 4 cannot be told")
    )
    result = run("config", "rollback", "4")
    assert result.exit_code == 1
    assert "revision 4 cannot be told" in result.stderr
