"""`usage` and `logs`: questions to the ledger."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from tollkeeper.admin.v1.usage_service_pb2 import (
    ListRequestsResponse,
    SumRequestsResponse,
    UsageGroup,
    UsageSum,
)
from tollkeeper.config.v1.resources_pb2 import Dialect
from tollkeeper.usage.v1.usage_service_pb2 import UsageRecord, UsageSource, UsageState

from controlplane.cli.usage import GroupBy
from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane

RunJson = Callable[..., Any]


def full_record() -> UsageRecord:
    record = UsageRecord(
        request_id="01936b2e-0000-7000-8000-000000000001",
        client_request_id="mine-1",
        node_id="n1",
        state=UsageState.USAGE_STATE_SETTLED,
        http_status=200,
        organization="acme",
        user="acme/alice",
        key="acme/alice/laptop",
        tier="free",
        ip="127.0.0.1",
        router="default",
        rule_id="r1",
        provider="mock",
        requested_model="fast",
        model="mock-echo",
        endpoint="chat",
        stream=True,
        dialect=Dialect.DIALECT_OPENAI,
        input_total_tokens=100,
        input_uncached_tokens=60,
        cache_read_tokens=30,
        cache_write_5m_tokens=7,
        cache_write_1h_tokens=3,
        output_tokens=11,
        reasoning_tokens=5,
        source=UsageSource.USAGE_SOURCE_REPORTED,
        cost_nanousd=123,
        charged_nanousd=120,
        attempts=2,
        is_failover=True,
        duration_ms=42,
        first_content_ms=12,
    )
    record.started_at.FromDatetime(datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=UTC))
    return record


def test_a_request_is_shown_under_the_promised_names(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("ListRequests", ListRequestsResponse(requests=[full_record()]))

    (row,) = run_json("logs")

    promised = {
        "id": "01936b2e-0000-7000-8000-000000000001",
        "client_request_id": "mine-1",
        "status": 200,
        "state": "settled",
        "organization": "acme",
        "user": "acme/alice",
        "key": "acme/alice/laptop",
        "device": None,
        "tier": "free",
        "ip": "127.0.0.1",
        "router": "default",
        "rule": "r1",
        "provider": "mock",
        "model": "mock-echo",
        "endpoint": "chat",
        "stream": True,
        "input_total": 100,
        "total": 111,
        "input_uncached": 60,
        "cache_read": 30,
        "cache_write": 10,
        "output": 11,
        "reasoning": 5,
        "cost_nanousd": 123,
        "charged_nanousd": 120,
        "source": "reported",
        "attempts": 2,
        "is_cached": False,
        "is_failover": True,
        "duration_ms": 42,
        "started_at": "2026-11-21T12:00:00.250000Z",
    }
    assert {name: row[name] for name in promised} == promised
    assert row["requested_model"] == "fast"
    assert row["error_code"] is None


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (UsageSource.USAGE_SOURCE_REPORTED, "reported"),
        (UsageSource.USAGE_SOURCE_PARTIAL, "partial"),
        (UsageSource.USAGE_SOURCE_ESTIMATED, "estimated"),
        (UsageSource.USAGE_SOURCE_UNKNOWN, "unknown"),
        (UsageSource.USAGE_SOURCE_UNSPECIFIED, None),
    ],
)
def test_the_source_of_figures_is_a_word(
    run_json: RunJson,
    control_plane: ScriptedControlPlane,
    source: UsageSource.ValueType,
    word: str | None,
) -> None:
    record = UsageRecord(source=source)
    control_plane.will_answer("ListRequests", ListRequestsResponse(requests=[record]))

    assert run_json("logs")[0]["source"] == word


def test_logs_hold_all_pages_in_the_order_of_the_ledger(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListRequests",
        ListRequestsResponse(
            requests=[UsageRecord(request_id="3"), UsageRecord(request_id="2")], next_page_token="p"
        ),
        ListRequestsResponse(requests=[UsageRecord(request_id="1")]),
    )

    assert [row["id"] for row in run_json("logs")] == ["3", "2", "1"]


def test_a_limit_asks_for_no_more_than_it_shows(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListRequests",
        ListRequestsResponse(
            requests=[UsageRecord(request_id="2"), UsageRecord(request_id="1")], next_page_token="p"
        ),
    )

    assert [row["id"] for row in run_json("logs", "--limit", "2")] == ["2", "1"]
    assert control_plane.only_request().page_size == 2


def test_logs_are_narrowed_by_their_flags(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    before = datetime.now(UTC)

    run_json(
        *[
            "logs",
            "--org",
            "acme",
            "--user",
            "acme/alice",
            "--key",
            "acme/alice/laptop",
            "--model",
            "m",
        ],
        *["--since", "24h", "--until", "2030-01-01", "--request-id", "r"],
    )

    chosen = control_plane.only_request().filter
    assert (chosen.organization, chosen.user, chosen.key) == (
        "acme",
        "acme/alice",
        "acme/alice/laptop",
    )
    assert (chosen.model, chosen.request_id) == ("m", "r")
    since = chosen.since.ToDatetime(UTC)
    assert timedelta(0) <= since - (before - timedelta(hours=24)) < timedelta(minutes=1)
    assert chosen.until.ToDatetime(UTC) == datetime(2030, 1, 1, tzinfo=UTC)


def test_a_refusal_on_the_first_page_leaves_stdout_empty(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListRequests", Refusal(grpc.StatusCode.NOT_FOUND, "no such user", "NOT_FOUND")
    )

    result = run(*["logs", "--user", "acme/bob", "-o", "json"])

    assert (result.exit_code, result.stdout) == (1, "")


def test_a_refusal_on_a_later_page_leaves_no_complete_document(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "ListRequests",
        ListRequestsResponse(requests=[UsageRecord(request_id="2")], next_page_token="p"),
        Refusal(grpc.StatusCode.UNAVAILABLE, "gone"),
    )

    result = run("logs", "-o", "json")

    assert result.exit_code == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.stdout)


def test_a_control_plane_that_repeats_a_page_is_not_followed_forever(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    page = ListRequestsResponse(requests=[UsageRecord(request_id="2")], next_page_token="p")
    control_plane.will_answer("ListRequests", page, page)

    result = run("logs", "-o", "json")

    assert result.exit_code == 1
    assert "same page twice" in result.stderr


@pytest.mark.parametrize(
    ("by", "group", "noun"),
    [
        (GroupBy.MODEL, UsageGroup.USAGE_GROUP_MODEL, "model"),
        (GroupBy.USER, UsageGroup.USAGE_GROUP_USER, "user"),
        (GroupBy.KEY, UsageGroup.USAGE_GROUP_KEY, "key"),
        (GroupBy.DEVICE, UsageGroup.USAGE_GROUP_DEVICE, "device"),
        (GroupBy.ORG, UsageGroup.USAGE_GROUP_ORGANIZATION, "organization"),
        (GroupBy.DAY, UsageGroup.USAGE_GROUP_DAY, "day"),
    ],
)
def test_sums_are_grouped_by_every_noun(
    run_json: RunJson,
    control_plane: ScriptedControlPlane,
    by: GroupBy,
    group: UsageGroup.ValueType,
    noun: str,
) -> None:
    row = UsageSum(
        group="g",
        requests=1,
        input_total_tokens=2,
        output_tokens=3,
        cost_nanousd=4,
        charged_nanousd=5,
    )
    control_plane.will_answer("SumRequests", SumRequestsResponse(sums=[row]))

    printed = run_json("usage", "--org", "acme", "--by", by)

    request = control_plane.only_request()
    assert (request.group_by, request.filter.organization) == (group, "acme")
    assert printed == [
        {
            noun: "g",
            "group": "g",
            "requests": 1,
            "input_total_tokens": 2,
            "cache_read_tokens": 0,
            "output_tokens": 3,
            "cost_nanousd": 4,
            "charged_nanousd": 5,
        }
    ]


def test_every_way_of_grouping_is_known() -> None:
    assert len(GroupBy) == len(UsageGroup.values()) - 1


def test_usage_without_a_group_is_one_sum(run: Run, control_plane: ScriptedControlPlane) -> None:
    sums = SumRequestsResponse(sums=[UsageSum(requests=3, cost_nanousd=500_000_000)])
    control_plane.will_answer("SumRequests", sums)

    shown = run("usage").stdout

    assert control_plane.only_request().group_by == UsageGroup.USAGE_GROUP_UNSPECIFIED
    assert "0.50" in shown
