"""`verify` and `explain`: whether counters are right, and why a request cost what it did."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tollkeeper.admin.v1.operations_service_pb2 import (
    CounterVerification,
    NamedDifference,
    RecountUsageResponse,
)
from tollkeeper.admin.v1.usage_service_pb2 import ListRequestsResponse
from tollkeeper.common.v1.limits_pb2 import (
    Counter,
    CounterDifference,
    LimitUnit,
    LimitWindow,
    SubjectKind,
)
from tollkeeper.common.v1.rates_pb2 import Rates
from tollkeeper.usage.v1.usage_service_pb2 import (
    CountedGeneration,
    TriedLayers,
    UsageRecord,
    UsageSource,
    UsageState,
)

from controlplane.cli.explanation import document, reasons
from controlplane.rpc.operations import RECOUNT_DEADLINE_S
from tests.cli.conftest import Run
from tests.cli.scripted import Refusal, ScriptedControlPlane
from tests.cli.test_usage import full_record

RunJson = Callable[..., Any]


def difference(*, repaired: bool = False, unit: str = "SPEND") -> NamedDifference:
    counter = Counter(
        subject_kind=SubjectKind.SUBJECT_KIND_USER,
        subject_id="u1",
        unit=LimitUnit.Value(f"LIMIT_UNIT_{unit}"),
        window=LimitWindow.LIMIT_WINDOW_MONTH,
        period_id="202611",
        reset_generation=2,
    )
    return NamedDifference(
        subject="user:acme/alice",
        difference=CounterDifference(
            counter=counter,
            settled=7_000_000_000,
            ledger=5_000_000_000,
            held=3,
            reserved=1,
            repaired=repaired,
        ),
    )


def verification(*each: NamedDifference, differing: int | None = None) -> CounterVerification:
    return CounterVerification(
        node_id="n1",
        compared=120,
        differing=len(each) if differing is None else differing,
        differences=each,
    )


def test_counters_that_agree_with_the_ledger_are_0_differences_and_exit_code_0(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("VerifyCounters", verification())

    result = run("verify")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "0 differences in 120 counters\n"
    assert not control_plane.only_request().repair
    assert control_plane.asked[0].remaining_s > 60


def test_differences_are_a_table_in_their_units_and_exit_code_1(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "VerifyCounters", verification(difference(), difference(unit="REQUESTS"))
    )

    result = run("verify")

    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert lines[0] == "subject unit window period_id settled ledger held reserved repaired"
    assert lines[2:] == [
        "user:acme/alice spend month 202611 7.00 USD 5.00 USD 0.000000003 USD 0.000000001 USD no",
        "user:acme/alice requests month 202611 7000000000 5000000000 3 1 no",
        "",
        "2 differences in 120 counters",
    ]


def test_a_verification_in_json_is_one_object(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("VerifyCounters", verification(difference()))

    result = run("verify", "-o", "json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "node_id": "n1",
        "compared": 120,
        "differing": 1,
        "recounted_requests": None,
        "differences": [
            {
                "subject": "user:acme/alice",
                "subject_kind": "user",
                "subject_id": "u1",
                "unit": "spend",
                "window": "month",
                "period_id": "202611",
                "reset_generation": 2,
                "settled": 7_000_000_000,
                "ledger": 5_000_000_000,
                "held": 3,
                "reserved": 1,
                "repaired": False,
            }
        ],
    }


@pytest.mark.parametrize(
    ("found", "exit_code", "sentence"),
    [
        (verification(difference(repaired=True)), 0, "1 difference in 120 counters, 1 repaired"),
        (
            verification(difference(repaired=True), difference()),
            1,
            "2 differences in 120 counters, 1 repaired",
        ),
        (
            verification(difference(repaired=True), differing=2),
            1,
            "2 differences in 120 counters, 1 repaired",
        ),
    ],
)
def test_a_repair_fails_when_something_may_be_left(
    run: Run,
    control_plane: ScriptedControlPlane,
    found: CounterVerification,
    exit_code: int,
    sentence: str,
) -> None:
    control_plane.will_answer("VerifyCounters", found)

    result = run("verify", "--repair")

    assert control_plane.only_request().repair
    assert result.exit_code == exit_code
    assert result.stdout.splitlines()[-1] == sentence
    listed = len(found.differences)
    assert ("are listed" in result.stderr) is (found.differing > listed)


@pytest.mark.parametrize("flags", [(), ("--repair",)])
def test_a_recount_comes_before_the_comparison(
    run: Run, control_plane: ScriptedControlPlane, flags: tuple[str, ...]
) -> None:
    control_plane.will_answer("RecountUsage", RecountUsageResponse(requests=70))
    control_plane.will_answer("VerifyCounters", verification())

    result = run("verify", "--recount", *flags, "-o", "json")

    recount, comparison = control_plane.asked
    assert (recount.rpc, comparison.rpc) == ("RecountUsage", "VerifyCounters")
    assert comparison.request.repair is bool(flags)
    # A large ledger takes minutes; the control plane gives up first.
    assert recount.remaining_s > RECOUNT_DEADLINE_S
    assert (result.exit_code, result.stderr) == (0, "The sums of 70 requests were recounted.\n")
    assert json.loads(result.stdout)["recounted_requests"] == 70


def test_a_recount_is_told_of_although_nobody_can_compare(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("RecountUsage", RecountUsageResponse(requests=70))
    control_plane.will_answer(
        "VerifyCounters", Refusal(grpc.StatusCode.UNAVAILABLE, "nobody", "LIMITS_UNAVAILABLE")
    )

    result = run("verify", "--recount")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "The sums of 70 requests were recounted.\nrefused: limits_unavailable: nobody\n"
    )


def test_a_verification_that_nobody_can_make_is_refused_with_its_reason(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer(
        "VerifyCounters",
        Refusal(grpc.StatusCode.UNAVAILABLE, "no data plane maintains them", "LIMITS_UNAVAILABLE"),
    )

    result = run("verify", "-o", "json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "refused: limits_unavailable: no data plane maintains them\n"


# ── One request ──────────────────────────────────────────────────────────────────────────────


def explained_record() -> UsageRecord:
    record = full_record()
    record.MergeFrom(
        UsageRecord(
            reserved_nanousd=500_000_000,
            reserved_tokens=4_196,
            price_id="p1",
            price_revision=9,
            rates=Rates(
                input_nanousd_per_million=150_000_000,
                output_nanousd_per_million=600_000_000,
                cache_read_nanousd_per_million=75_000_000,
            ),
            usage_day="20261121",
            usage_month="202611",
            service_day="20261121",
            generations=[CountedGeneration(layer="user_requests_per_day", reset_generation=2)],
            address_subjects=["203.0.113.7"],
            output_cap_tokens=4_096,
            layers=TriedLayers(
                names=["user_requests_per_day", "user_spend_per_month", "key_parallel"],
                capacities=[50, 1_000_000_000, 4],
                reserved=[1, 500_000_000, 1],
                remaining=[48, 250_000_000, 3],
                shadow=[0],
                soft=[1],
            ),
        )
    )
    return record


def test_an_explanation_in_json_holds_all_that_logs_show_and_why(
    run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    page = ListRequestsResponse(requests=[explained_record()])
    control_plane.will_answer("ListRequests", page, page)

    shown = run_json("explain", "01936b2e-0000-7000-8000-000000000001")
    (logged,) = run_json("logs")

    assert control_plane.requests("ListRequests")[0].filter.request_id == logged["id"]
    assert {name: shown[name] for name in logged} == logged
    assert shown["layers"] == [
        {
            "layer": "user_requests_per_day",
            "unit": "requests",
            "capacity": 50,
            "reserved": 1,
            "remaining_before": 49,
            "remaining_after": 48,
            "soft": False,
            "shadow": True,
            "reset_generation": 2,
        },
        {
            "layer": "user_spend_per_month",
            "unit": "spend",
            "capacity": 1_000_000_000,
            "reserved": 500_000_000,
            "remaining_before": 750_000_000,
            "remaining_after": 250_000_000,
            "soft": True,
            "shadow": False,
            "reset_generation": 0,
        },
        {
            "layer": "key_parallel",
            "unit": "parallel",
            "capacity": 4,
            "reserved": 1,
            "remaining_before": 4,
            "remaining_after": 3,
            "soft": False,
            "shadow": False,
            "reset_generation": 0,
        },
    ]
    assert (shown["price_id"], shown["price_revision"]) == ("p1", 9)
    assert shown["rates"] == {
        "input_nanousd_per_million": 150_000_000,
        "output_nanousd_per_million": 600_000_000,
        "cache_read_nanousd_per_million": 75_000_000,
        "cache_write_5m_nanousd_per_million": None,
        "cache_write_1h_nanousd_per_million": None,
        "request_nanousd": 0,
    }
    assert (shown["settled_nanousd"], shown["settled_tokens"]) == (120, 111)
    assert (shown["output_cap_tokens"], shown["is_degraded"]) == (4096, False)
    assert shown["why"] == [
        "Bytes went to a provider, and the charge is final.",
        "Another attempt than the first answered: there were 2.",
        "The token counts are the provider's own final figures.",
        "The caller gave no output cap, so the gateway sent one: 4096 tokens.",
        "Price p1 was pinned when it was admitted, as it was at revision 9.",
        "0.50 USD were reserved and 0.00000012 USD charged: 0.49999988 USD less.",
        "All attempts together cost 0.000000123 USD; only the one that answered counts "
        "against budgets.",
        "user_requests_per_day counted it in generation 2: an administrator had reset "
        "that counter.",
    ]


def test_people_read_who_then_the_layers_then_the_price_then_why(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    control_plane.will_answer("ListRequests", ListRequestsResponse(requests=[explained_record()]))

    shown = [" ".join(line.split()) for line in run("explain", "r").stdout.splitlines()]

    ordered = [
        "user acme/alice",
        "router default",
        "user_requests_per_day 50 1 49 48 no yes 2",
        "user_spend_per_month 1.00 USD 0.50 USD 0.75 USD 0.25 USD yes no 0",
        "price_id p1",
        "input_usd_per_million 0.15",
        "reserved_usd 0.50",
        "charged_usd 0.00000012",
        "Bytes went to a provider, and the charge is final.",
    ]
    assert [line for line in shown if line in ordered] == ordered
    assert "cache_write_5m_usd_per_million" not in " ".join(shown)


def test_what_a_shadow_that_was_short_had_left_before_is_not_known(
    run: Run, run_json: RunJson, control_plane: ScriptedControlPlane
) -> None:
    record = explained_record()
    record.layers.CopyFrom(
        TriedLayers(
            names=["user_requests_per_day", "user_spend_per_month", "key_spend_total"],
            capacities=[50, 2_000_000_000, 3_000_000_000],
            reserved=[1, 1_000_000_000, 1_000_000_000],
            remaining=[0, 0, 0],
            shadow=[0, 1],
        )
    )
    page = ListRequestsResponse(requests=[record])
    control_plane.will_answer("ListRequests", page, page)

    shown = [" ".join(line.split()) for line in run("explain", "r").stdout.splitlines()]
    layers = run_json("explain", "r")["layers"]

    assert [each["remaining_before"] for each in layers] == [None, None, 1_000_000_000]
    assert "user_requests_per_day 50 1 - 0 no yes 2" in shown
    assert "user_spend_per_month 2.00 USD 1.00 USD - 0.00 USD no yes 0" in shown
    assert "key_spend_total 3.00 USD 1.00 USD 1.00 USD 0.00 USD no no 0" in shown


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": UsageState.USAGE_STATE_RELEASED}, "Nothing went to a provider:"),
        ({"state": UsageState.USAGE_STATE_ABANDONED}, "The data plane that served it stopped"),
        ({"source": UsageSource.USAGE_SOURCE_PARTIAL}, "The token counts are the provider's fig"),
        ({"source": UsageSource.USAGE_SOURCE_ESTIMATED}, "The token counts were estimated"),
        ({"source": UsageSource.USAGE_SOURCE_UNKNOWN}, "Nobody knows the token counts"),
        ({}, "No tokens were counted."),
        ({}, "No price was pinned"),
        ({}, "No layers are recorded of it."),
        ({}, "Nothing was reserved, and 0.00 USD charged."),
        ({"http_status": 499}, "The client left first"),
        (
            {"http_status": 504, "error_code": "upstream_timeout"},
            "It ended with upstream_timeout, HTTP status 504.",
        ),
        ({"is_cached": True}, "It was answered from the response cache."),
        ({"is_degraded": True}, "Counters could not be read"),
        (
            {"reserved_nanousd": 5_000_000_000, "charged_nanousd": 5_000_000_000},
            "5.00 USD were reserved, and all of it charged.",
        ),
        (
            {"reserved_nanousd": 1_000_000_000, "charged_nanousd": 3_000_000_000},
            "1.00 USD were reserved and 3.00 USD charged: 2.00 USD more.",
        ),
    ],
)
def test_each_circumstance_of_a_request_is_a_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    found = [each for each in reasons(UsageRecord(**changes)) if each.startswith(sentence)]

    assert len(found) == 1


@pytest.mark.parametrize("state", [each for each in UsageState.values() if each])
def test_every_way_to_end_and_every_source_of_figures_is_known(
    state: UsageState.ValueType,
) -> None:
    for source in UsageSource.values():
        sentences = list(reasons(UsageRecord(state=state, source=source)))

        assert not any(each.startswith("Its state is") for each in sentences)
        assert ("No tokens were counted." in sentences) is (source == 0)


@pytest.mark.parametrize(
    ("state", "tokens"),
    [
        (UsageState.USAGE_STATE_SETTLED, 12),
        (UsageState.USAGE_STATE_RELEASED, 0),
        (UsageState.USAGE_STATE_ABANDONED, 90),
    ],
)
def test_what_counters_hold_of_a_request_depends_on_how_it_ended(
    state: UsageState.ValueType, tokens: int
) -> None:
    record = UsageRecord(state=state, input_total_tokens=5, output_tokens=7, reserved_tokens=90)

    assert document(record)["settled_tokens"] == tokens


def test_a_request_that_the_ledger_does_not_have_is_exit_code_1(
    run: Run, control_plane: ScriptedControlPlane
) -> None:
    result = run("explain", "nope", "-o", "json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("the ledger has no request nope: ")
