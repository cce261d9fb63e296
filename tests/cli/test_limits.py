"""`limit`, `budget`, `service` and `user reset-quota`: what they ask of the control plane, and what they print."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tollkeeper.admin.v1.budget_service_pb2 import (
    Budget,
    BudgetEvent,
    ListBudgetEventsResponse,
    ListBudgetsResponse,
)
from tollkeeper.admin.v1.limit_service_pb2 import SubjectLimits
from tollkeeper.admin.v1.operations_service_pb2 import ResetLimiterClockResponse, ServicePause
from tollkeeper.admin.v1.tier_service_pb2 import Tier
from tollkeeper.common.v1.limits_pb2 import (
    Counter,
    CounterReset,
    Limit,
    LimitUnit,
    LimitWindow,
    TemporaryLimit,
)

from controlplane.cli.plain import record_of
from tests.cli.conftest import Run
from tests.cli.scripted import ScriptedControlPlane

RunJson = Callable[..., Any]
REQUESTS, TOKENS = LimitUnit.LIMIT_UNIT_REQUESTS, LimitUnit.LIMIT_UNIT_TOKENS
SPEND = LimitUnit.LIMIT_UNIT_SPEND
DAY, MONTH = LimitWindow.LIMIT_WINDOW_DAY, LimitWindow.LIMIT_WINDOW_MONTH
RATE = LimitWindow.LIMIT_WINDOW_RATE
UNTIL = datetime(2026, 11, 22, 18, tzinfo=UTC)


def counted(limits: Any) -> list[tuple[Any, Any]]:
    """Return the units and windows that a request names."""
    return [(record["unit"], record["window"]) for record in map(record_of, limits)]


def of_alice() -> SubjectLimits:
    held = TemporaryLimit(limit=Limit(unit=SPEND, window=MONTH, capacity=200_000_000_000))
    held.until.FromDatetime(UNTIL)
    return SubjectLimits(
        subject="user:acme/alice",
        limits=[Limit(unit=REQUESTS, window=RATE, capacity=10, every_ms=1000, burst=20)],
        temporary_limits=[held],
        resets=[CounterReset(unit=REQUESTS, window=DAY, reset_generation=3)],
        revision=7,
    )


# ── Rates ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "limit"),
    [
        ("--requests 10 --every 1s", Limit(capacity=10, every_ms=1000)),
        ("--requests 10 --every 1s --burst 20", Limit(capacity=10, every_ms=1000, burst=20)),
        ("--requests 1 --every 1d", Limit(capacity=1, every_ms=86_400_000)),
        ("--requests 3 --every 1ms", Limit(capacity=3, every_ms=1)),
        ("--requests 0 --every 1m", Limit(capacity=0, every_ms=60_000)),
        ("--requests-per-second 5", Limit(capacity=5, every_ms=1000)),
        ("--requests-per-second 5 --burst 50", Limit(capacity=5, every_ms=1000, burst=50)),
        ("--requests none", Limit(unlimited=True)),
        ("--requests-per-second none", Limit(unlimited=True)),
        ("--requests-per-second 5 --shadow", Limit(capacity=5, every_ms=1000, shadow=True)),
    ],
)
def test_a_rate_is_so_many_requests_every_so_often(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: str, limit: Limit
) -> None:
    run_json("limit", "set", "--user", "acme/alice", *flags.split())

    limit.unit, limit.window = REQUESTS, RATE
    assert list(control_plane.only_request().limits.limits) == [limit]


def test_rates_are_given_wherever_limits_are(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json("user", "create", "acme/alice", "--requests-per-second", "2")
    run_json("org", "create", "acme", *["--requests", "7", "--every", "500ms"])
    run_json(
        *[
            "tier",
            "create",
            "trial",
            "--device-requests",
            "10",
            "--device-every",
            "1m",
            "--device-burst",
            "3",
        ],
        *["--ip-requests-per-second", "4"],
    )

    (user,) = control_plane.requests("CreateUser")
    (organization,) = control_plane.requests("CreateOrganization")
    (tier,) = (each.tier for each in control_plane.requests("CreateTier"))
    assert [(each.capacity, each.every_ms) for each in user.limits] == [(2, 1000)]
    assert [(each.capacity, each.every_ms) for each in organization.limits] == [(7, 500)]
    assert tier == Tier(
        name="trial",
        device_limits=[Limit(unit=REQUESTS, window=RATE, capacity=10, every_ms=60_000, burst=3)],
        ip_limits=[Limit(unit=REQUESTS, window=RATE, capacity=4, every_ms=1000)],
    )


def test_the_rate_of_a_tier_is_taken_away_by_none(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    rate = Limit(unit=REQUESTS, window=RATE, capacity=10, every_ms=1000)
    control_plane.will_answer("GetTier", Tier(name="free", user_limits=[rate]))

    run_json("tier", "update", "free", "--user-requests", "none")

    (request,) = control_plane.requests("UpdateTier")
    assert list(request.tier.user_limits) == []


# ── Subjects ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "subject"),
    [
        ("--endpoint chat", "endpoint:chat"),
        ("--model gpt-4o-mini", "model:gpt-4o-mini"),
        ("--model global", "model:global"),
        ("--user acme/alice", "user:acme/alice"),
        ("--global", "global"),
    ],
)
def test_every_command_about_a_subject_takes_it_the_same_way(
    run_json: RunJson, control_plane: ScriptedControlPlane, flags: str, subject: str
) -> None:
    for verb in (
        *("limit get", "limit delete", "limit reset", "budget reset"),
        "limit set --requests-per-day 1",
        "limit override --requests-per-day 1 --for 1h",
        "budget override --daily-budget-usd 1 --for 1h",
        *("budget list", "budget events"),
    ):
        run_json(*verb.split(), *flags.split())

    named = [
        asked.request.limits.subject if asked.rpc == "SetLimits" else asked.request.subject
        for asked in control_plane.asked
    ]
    assert named == [subject] * 9


# ── Overrides ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("noun", ["limit", "budget"])
def test_an_override_lasts_so_long_from_now(
    run_json: RunJson, control_plane: ScriptedControlPlane, noun: str
) -> None:
    control_plane.will_answer("SetTemporaryLimits", of_alice())
    before = datetime.now(UTC)

    printed = run_json(
        *f"{noun} override --user acme/alice --monthly-budget-usd 200 --for 24h --soft".split()
    )

    request = control_plane.only_request()
    (held,) = request.limits
    assert request.subject == "user:acme/alice"
    assert held.limit == Limit(unit=SPEND, window=MONTH, capacity=200_000_000_000, soft=True)
    lasts = held.until.ToDatetime(UTC) - before
    assert timedelta(hours=24) <= lasts < timedelta(hours=24, minutes=1)
    assert printed["temporary_limits"][0]["until"] == "2026-11-22T18:00:00Z"
    assert printed["resets"] == [{"unit": "requests", "window": "day", "reset_generation": 3}]


def test_an_override_lasts_until_an_instant_for_all_its_limits(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(
        *["limit", "override", "--org", "acme", "--tokens-per-minute", "none", "--parallel", "9"],
        *["--requests", "3", "--every", "1s", "--until", "2099-01-31T19:00:00+01:00"],
    )

    limits = control_plane.only_request().limits
    assert counted(each.limit for each in limits) == [
        ("requests", "rate"),
        ("tokens", "minute"),
        ("parallel", None),
    ]
    until = datetime(2099, 1, 31, 18, tzinfo=UTC)
    assert {each.until.ToDatetime(UTC) for each in limits} == {until}


def test_a_table_of_limits_says_until_when_each_holds(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("GetLimits", of_alice())

    heading, _, *rows = (
        " ".join(line.split())
        for line in run("limit", "get", "--user", "acme/alice").stdout.splitlines()
    )

    assert heading == "subject unit window capacity soft shadow until"
    assert rows == [
        "user:acme/alice requests rate 10 every 1s, 20 at once no no -",
        "user:acme/alice spend month 200.00 USD no no 2026-11-22T18:00:00Z",
    ]


def test_temporary_limits_are_deleted_alone(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    run_json(*["limit", "delete", "--org", "acme", "--temporary", "--only", "requests-rate"])

    request = control_plane.only_request()
    assert request.temporary_only
    assert counted(request.limits) == [("requests", "rate")]


# ── Resets ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("limit reset --user acme/alice", []),
        ("user reset-quota acme/alice", []),
        (
            "limit reset --user acme/alice --only tokens-per-day --only requests-rate",
            [("tokens", "day"), ("requests", "rate")],
        ),
        (
            "budget reset --user acme/alice",
            [("spend", "day"), ("spend", "month"), ("spend", "total")],
        ),
        ("budget reset --user acme/alice --only monthly-budget-usd", [("spend", "month")]),
    ],
)
def test_counters_start_anew_all_or_those_that_are_named(
    run_json: RunJson,
    control_plane: ScriptedControlPlane,
    line: str,
    names: list[tuple[str, str]],
) -> None:
    control_plane.will_answer("ResetCounters", of_alice())

    printed = run_json(*line.split())

    request = control_plane.only_request()
    assert (request.subject, counted(request.limits)) == ("user:acme/alice", names)
    assert (printed["subject"], printed["revision"]) == ("user:acme/alice", 7)


def test_a_table_of_a_reset_shows_the_generations(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("ResetCounters", of_alice())

    shown = run("user", "reset-quota", "acme/alice").stdout.splitlines()

    assert shown[0].split() == ["subject", "unit", "window", "reset_generation"]
    assert [line.split() for line in shown[2:]] == [["user:acme/alice", "requests", "day", "3"]]


def test_the_limiters_clock_is_reset_by_a_node_that_has_a_minute_for_it(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("ResetLimiterClock", ResetLimiterClockResponse(node_id="n1"))

    assert run_json("limit", "reset-clock") == {"node_id": "n1"}
    assert control_plane.asked[0].remaining_s > 60


# ── Budgets ──────────────────────────────────────────────────────────────────────────────────


def budgets() -> ListBudgetsResponse:
    held = Budget(
        subject="user:acme/alice",
        window=MONTH,
        period_id="202611",
        capacity_nanousd=200_000_000_000,
        spent_nanousd=85_000_000_001,
    )
    held.temporary_until.FromDatetime(UNTIL)
    closed = Budget(subject="global", window=DAY, period_id="20261121", soft=True)
    return ListBudgetsResponse(budgets=[held, closed])


def test_budgets_are_listed_with_how_far_they_are_used(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("ListBudgets", budgets())

    heading, _, *rows = (
        " ".join(line.split()) for line in run("budget", "list").stdout.splitlines()
    )

    assert heading == (
        "subject window period_id capacity_usd spent_usd used soft shadow temporary_until"
    )
    assert rows == [
        "user:acme/alice month 202611 200.00 85.000000001 42 % no no 2026-11-22T18:00:00Z",
        "global day 20261121 0.00 0.00 - yes no -",
    ]
    assert control_plane.only_request().subject == ""


def test_budgets_in_json_are_integers_from_all_pages(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    first = budgets()
    first.next_page_token = "2"
    control_plane.will_answer("ListBudgets", first, ListBudgetsResponse())

    of_alice, of_all = run_json("budget", "list", "--user", "acme/alice")

    assert of_alice == {
        "subject": "user:acme/alice",
        "window": "month",
        "period_id": "202611",
        "capacity_nanousd": 200_000_000_000,
        "spent_nanousd": 85_000_000_001,
        "soft": False,
        "shadow": False,
        "temporary_until": "2026-11-22T18:00:00Z",
        "reset_generation": 0,
    }
    assert of_all["temporary_until"] is None


def test_warnings_of_budgets_are_listed_newest_first(
    run: Run, run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    event = BudgetEvent(
        subject="organization:acme",
        counter=Counter(unit=SPEND, window=MONTH, period_id="202611", subject_id="o1"),
        percent=80,
        capacity_nanousd=10_000_000_000,
        settled_nanousd=8_000_000_000,
        held_nanousd=1,
    )
    event.reached_at.FromDatetime(UNTIL)
    page = ListBudgetEventsResponse(events=[event])
    control_plane.will_answer("ListBudgetEvents", page, page)

    (row,) = run("budget", "events").stdout.splitlines()[2:]
    (shown,) = run_json("budget", "events", "--org", "acme")

    assert row.split() == [
        *("2026-11-22T18:00:00Z", "organization:acme", "month", "202611", "80"),
        *("10.00", "8.00", "0.000000001"),
    ]
    assert (shown["percent"], shown["settled_nanousd"]) == (80, 8_000_000_000)
    assert shown["counter"]["period_id"] == "202611"


# ── The service as a whole ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("verb", "rpc"), [("pause", "PauseService"), ("resume", "ResumeService")])
def test_the_service_is_paused_and_resumed(
    run_json: RunJson, control_plane: ScriptedControlPlane, verb: str, rpc: str
) -> None:
    control_plane.will_answer(rpc, ServicePause(paused=verb == "pause", revision=5))

    assert run_json("service", verb) == {"paused": verb == "pause", "revision": 5}
