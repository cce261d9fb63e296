"""The reasons that callers meet against those of the contract."""

import json

import pytest
from tollkeeper.common.v1 import errors_pb2

from dataplane.domain.calls import Dialect
from dataplane.domain.limiting import Layer, Standing, SubjectKind, Unit, Window
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.errors import STATUS, error_event, refused, status_of

DIALECTS = (Dialect.OPENAI, Dialect.ANTHROPIC)
OPENAI_TYPES = {
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
    "rate_limit_error", "insufficient_quota", "server_error",
}  # fmt: skip
# https://docs.anthropic.com/en/api/errors
ANTHROPIC_TYPES = {
    "invalid_request_error", "authentication_error", "billing_error", "permission_error",
    "not_found_error", "request_too_large", "rate_limit_error", "timeout_error", "api_error",
    "overloaded_error",
}  # fmt: skip


def test_the_reasons_are_those_of_the_contract() -> None:
    prefix = "ERROR_REASON_"
    names = {name.removeprefix(prefix).lower() for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 - an enum wrapper is no dict

    assert {reason.value for reason in Reason} == names - {"unspecified"}
    assert all(reason.name.lower() == reason.value for reason in Reason)


def test_the_table_of_statuses_covers_every_reason() -> None:
    assert set(STATUS) == set(Reason)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_whole_answer_in_every_dialect(reason: Reason, dialect: Dialect) -> None:
    refusal = Refusal(reason, "Why.", param="x", details={"a": 1})

    answer = refused(refusal, dialect, "id-1")

    headers = dict(answer.headers)
    assert answer.status == status_of(reason, dialect) >= 400
    assert headers["x-tollkeeper-error"] == reason.value
    assert ("retry-after" in headers) is (STATUS[reason] in (429, 503))
    error = json.loads(answer.body)["error"]
    types = OPENAI_TYPES if dialect is Dialect.OPENAI else ANTHROPIC_TYPES
    assert error["type"] in types
    assert (error["message"], error["details"]) == ("Why.", {"a": 1})
    event = error_event(refusal, dialect, "id-1")
    assert event.endswith(b"\n\n")
    assert json.loads(event.splitlines()[-2].removeprefix(b"data: "))["error"] == error


@pytest.mark.parametrize(
    "reason",
    [
        Reason.INSUFFICIENT_QUOTA,
        Reason.BUDGET_PAUSED,
        Reason.PROVIDER_QUOTA_EXHAUSTED,
        Reason.REQUEST_TOO_LARGE_FOR_LIMIT,
    ],
)
def test_clients_are_told_not_to_retry_where_waiting_does_not_help(reason: Reason) -> None:
    for dialect in DIALECTS:
        assert ("x-should-retry", "false") in refused(Refusal(reason, ""), dialect).headers


def test_a_money_cap_is_402_for_anthropics_callers_only() -> None:
    statuses = [status_of(Reason.INSUFFICIENT_QUOTA, dialect) for dialect in DIALECTS]

    assert statuses == [429, 402]


def test_standings_are_not_part_of_a_body() -> None:
    layer = Layer(SubjectKind.GLOBAL, "", Unit.REQUESTS, Window.DAY, 424242)
    refusal = Refusal(
        Reason.RATE_LIMIT_EXCEEDED, "Why.", standings=(Standing(layer, 0, 1, "20261121"),)
    )

    for dialect in DIALECTS:
        assert b"424242" not in refused(refusal, dialect).body
