"""`audit list`: who changed what."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from tollkeeper.admin.v1.audit_service_pb2 import (
    AuditedChange,
    AuditEntry,
    ListAuditEntriesResponse,
)

from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane

RunJson = Callable[..., Any]


def struct(fields: dict[str, object]) -> Struct:
    return ParseDict(fields, Struct())


def change(
    before: dict[str, object] | None, after: dict[str, object] | None, resource_id: str = "d1"
) -> AuditedChange:
    return AuditedChange(
        kind="device",
        id=resource_id,
        before=None if before is None else struct(before),
        after=None if after is None else struct(after),
    )


def entry(*changes: AuditedChange) -> AuditEntry:
    made = AuditEntry(
        id=5,
        actor="ops-bot",
        rpc="ApproveDevice",
        resource="d1",
        request=struct({"id": "d1", "allowed_models": ["gpt-*"], "wait_ms": 250, "share": 0.5}),
        revision=12,
        changes=changes,
    )
    made.at.FromDatetime(datetime(2026, 11, 21, 12, tzinfo=UTC))
    return made


def changes_column(run: Run, control_plane: ScriptedControlPlane, *changes: AuditedChange) -> str:
    """Return what a table says of an entry's changes."""
    control_plane.will_answer(
        "ListAuditEntries", ListAuditEntriesResponse(entries=[entry(*changes)])
    )
    row = " ".join(run("audit", "list").stdout.splitlines()[-1].split())
    before = "2026-11-21T12:00:00Z ops-bot ApproveDevice d1 12 "
    assert row.startswith(before)
    return row.removeprefix(before)


def test_an_entry_in_json_holds_the_request_and_the_changes_as_objects(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    changed = change(
        {"status": "pending_approval", "user_id": None},
        {"status": "approved", "user_id": "u1", "is_new": False, "limits": {"day": 3}},
    )
    control_plane.will_answer(
        "ListAuditEntries",
        ListAuditEntriesResponse(entries=[entry(changed, change(None, {"name": "cli"}))]),
    )

    (shown,) = run_json("audit", "list")

    assert shown == {
        "id": 5,
        "at": "2026-11-21T12:00:00Z",
        "actor": "ops-bot",
        "rpc": "ApproveDevice",
        "resource": "d1",
        "request": {"allowed_models": ["gpt-*"], "id": "d1", "share": 0.5, "wait_ms": 250},
        "revision": 12,
        "changes": [
            {
                "kind": "device",
                "id": "d1",
                "before": {"status": "pending_approval", "user_id": None},
                "after": {
                    "is_new": False,
                    "limits": {"day": 3},
                    "status": "approved",
                    "user_id": "u1",
                },
            },
            {"kind": "device", "id": "d1", "before": None, "after": {"name": "cli"}},
        ],
    }
    assert isinstance(shown["request"]["wait_ms"], int)


def test_a_table_says_what_a_change_was(run: Run, control_plane: ScriptedControlPlane) -> None:
    changed = change(
        {"status": "pending_approval", "user": ""}, {"status": "approved", "user": "acme/alice"}
    )

    shown = changes_column(run, control_plane, changed)

    assert shown == "status: pending_approval → approved, user: - → acme/alice"


def test_a_table_says_what_came_and_what_went(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    created, deleted = change(None, {"name": "cli"}), change({"name": "cli"}, None)

    assert changes_column(run, control_plane, created) == "created"
    assert changes_column(run, control_plane, deleted) == "deleted"
    assert changes_column(run, control_plane) == "-"


def test_a_table_names_the_resources_where_there_are_several_and_stays_short(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    long = change({"models": ["gpt-4o"] * 30}, {"models": []}, "d2")
    more = [change({"name": "x"}, None, f"d{number}") for number in range(3, 6)]

    shown = changes_column(run, control_plane, change({"a": 1}, {"a": True}), long, *more)

    assert shown.startswith("device d1: a: 1 → true; device d2: models: gpt-4o, gpt-4o, ")
    assert shown.endswith("… → -; device d3: deleted; and 2 more")
    assert len(shown) < 170


def test_a_table_says_limits_as_people_do(run: Run, control_plane: ScriptedControlPlane) -> None:
    before = [
        {"unit": 1, "window": 2, "capacity": 100, "unlimited": False},
        {"unit": 4, "window": 0, "capacity": 2, "unlimited": False},
    ]
    after = [
        {"unit": 3, "window": 3, "capacity": 50_000_000, "unlimited": False},
        {"unit": 2, "window": 1, "capacity": 0, "unlimited": True},
    ]

    shown = changes_column(
        run, control_plane, change({"device_limits": before}, {"device_limits": after})
    )

    assert shown == (
        "device_limits: 100 requests/day, 2 parallel → 0.05 USD/month, unlimited tokens/minute"
    )


def test_a_table_says_rates_overrides_and_resets_as_people_do(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    rate = {"unit": 1, "window": 5, "capacity": 10, "every_ms": 1000}
    held = {"limit": {"unit": 3, "window": 3, "capacity": 10**9}, "until": "2026-11-22T18:00:00Z"}
    again = {"unit": 1, "window": 2, "reset_generation": 2}

    first = changes_column(
        run, control_plane, change({"limits": [rate]}, {"limits": [{**rate, "burst": 20}]})
    )
    second = changes_column(
        run, control_plane, change({"temporary_limits": []}, {"temporary_limits": [held]})
    )
    third = changes_column(run, control_plane, change({"resets": []}, {"resets": [again]}))

    assert first == "limits: 10 requests every 1s → 10 requests every 1s (20 at once)"
    assert second == "temporary_limits: - → 1.00 USD/month until 2026-11-22T18:00:00Z"
    assert third == "resets: - → requests/day: generation 2"


@pytest.mark.parametrize(
    ("field", "number", "word"),
    [
        ("status", 1, "pending_approval"),
        ("status", 2, "approved"),
        ("status", 0, None),
        ("status", 99, "99"),
        ("status", "approved", "approved"),
        ("on_limits_unavailable", 2, "open"),
        ("role", 3, "operator"),
        ("subject_kind", 6, "ip"),
        ("unit", 3, "spend"),
        ("window", 4, "total"),
        ("window", 5, "rate"),
        ("subject_kind", 8, "model"),
        ("dialect", 3, "google"),
        ("capacity", 3, 3),
        ("paused", True, True),
        ("status", True, True),
    ],
)
def test_numbers_of_enums_are_words(
    run_json: RunJson,
    control_plane: ScriptedControlPlane,
    field: str,
    number: object,
    word: object,
) -> None:
    changed = change({field: number}, {"within": [{field: number}]})
    control_plane.will_answer(
        "ListAuditEntries", ListAuditEntriesResponse(entries=[entry(changed)])
    )

    (shown,) = run_json("audit", "list")

    assert shown["changes"][0]["before"] == {field: word}
    assert shown["changes"][0]["after"] == {"within": [{field: word}]}


def test_entries_are_narrowed_by_their_flags(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    before = datetime.now(UTC)

    run_json(
        *["audit", "list", "--resource", "acme/alice", "--actor", "ops-bot", "--rpc", "UpdateUser"],
        *["--since", "24h", "--until", "2030-01-01"],
    )

    request = control_plane.only_request()
    assert (request.resource, request.actor, request.rpc) == ("acme/alice", "ops-bot", "UpdateUser")
    since = request.since.ToDatetime(UTC)
    assert timedelta(0) <= since - (before - timedelta(hours=24)) < timedelta(minutes=1)
    assert request.until.ToDatetime(UTC) == datetime(2030, 1, 1, tzinfo=UTC)


def test_entries_come_newest_first_from_all_pages_up_to_the_limit(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListAuditEntries",
        ListAuditEntriesResponse(entries=[AuditEntry(id=9), AuditEntry(id=8)], next_page_token="2"),
        ListAuditEntriesResponse(entries=[AuditEntry(id=7), AuditEntry(id=6)], next_page_token="3"),
    )

    assert [shown["id"] for shown in run_json("audit", "list", "--limit", "3")] == [9, 8, 7]
    requests = control_plane.requests("ListAuditEntries")
    assert [(each.page_token, each.page_size) for each in requests] == [("", 3), ("2", 3)]
