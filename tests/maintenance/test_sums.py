"""What a request adds to which counters: the rules that the ledger's sums follow as well."""

from typing import Any

import msgspec
import pytest

from dataplane.domain.calls import Usage, UsageState
from dataplane.domain.counters import CounterKind, CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.domain.periods import FOREVER_MS
from dataplane.domain.principals import SubjectLimits, TemporaryEntry, Tier
from dataplane.domain.sums import (
    amounts_of,
    contribution_of,
    counter_kinds,
    latest_end_ms,
    open_period_ids,
)
from tests.control.usage_events import usage_event
from tests.maintenance.nodes import entry, snapshot_of

DAY_MS = 86_400_000
# 21 November 2026, noon in UTC.
NOON_MS = 1_795_262_400_000


def counted(**changes: Any) -> dict[CounterName, int]:
    event = msgspec.structs.replace(usage_event(), **changes)
    contribution = contribution_of(event)
    assert contribution is not None
    return dict(amounts_of(contribution))


def test_a_request_counts_for_each_of_its_subjects_in_three_units_and_three_periods() -> None:
    amounts = counted(address_subjects=("a1", "free-a1"), device_id="", generations=())

    subjects = {(each.subject_kind, each.subject_id) for each in amounts}
    assert subjects == {
        (SubjectKind.GLOBAL, ""),
        (SubjectKind.ORGANIZATION, "organization1"),
        (SubjectKind.USER, "user12345678"),
        (SubjectKind.KEY, "key123456789"),
        (SubjectKind.IP, "a1"),
        (SubjectKind.IP, "free-a1"),
        (SubjectKind.ENDPOINT, "chat"),
        (SubjectKind.MODEL, "model"),
    }
    assert len(amounts) == len(subjects) * 9


@pytest.mark.parametrize(
    ("kind", "subject_id", "day", "month"),
    [
        (SubjectKind.USER, "user12345678", "20261201", "202612"),
        (SubjectKind.MODEL, "model", "20261130", "202611"),
        (SubjectKind.GLOBAL, "", "20261130", "202611"),
    ],
)
def test_an_organization_has_days_of_its_own_and_the_service_those_of_utc(
    kind: SubjectKind, subject_id: str, day: str, month: str
) -> None:
    amounts = counted(usage_day="20261201", usage_month="202612", service_day="20261130")

    periods = {
        each.window: each.period_id
        for each in amounts
        if (each.subject_kind, each.subject_id) == (kind, subject_id)
    }
    assert periods == {Window.DAY: day, Window.MONTH: month, Window.TOTAL: "total"}


def test_each_unit_counts_in_the_generation_of_its_own_counter() -> None:
    amounts = counted(generations=(("user_requests_per_day", 3),))

    def generation(unit: Unit, window: Window) -> int:
        [found] = [
            each.reset_generation
            for each in amounts
            if (each.subject_kind, each.unit, each.window) == (SubjectKind.USER, unit, window)
        ]
        return found

    assert generation(Unit.REQUESTS, Window.DAY) == 3
    assert generation(Unit.REQUESTS, Window.MONTH) == 0
    assert generation(Unit.SPEND, Window.DAY) == 0


@pytest.mark.parametrize(
    ("state", "tokens"), [(UsageState.SETTLED, 7), (UsageState.ABANDONED, 111)]
)
def test_an_abandoned_request_counts_the_tokens_that_it_reserved(
    state: UsageState, tokens: int
) -> None:
    usage = Usage(input_total_tokens=3, output_tokens=4)

    amounts = counted(state=state, usage=usage, reserved_tokens=111, charged_nanousd=9)

    by_unit = {each.unit: amount for each, amount in amounts.items()}
    assert by_unit == {Unit.REQUESTS: 1, Unit.TOKENS: tokens, Unit.SPEND: 9}


def test_a_request_that_was_given_back_counts_nowhere() -> None:
    assert contribution_of(usage_event(UsageState.RELEASED)) is None


def test_the_kinds_of_counter_are_those_that_any_limit_of_a_configuration_counts() -> None:
    passing = TemporaryEntry(entry(Unit.SPEND, Window.TOTAL), until_ms=0)
    away = entry(Unit.TOKENS, Window.MONTH, is_unlimited=True)
    limits = {
        "model:ft:gpt-4.1:acme": SubjectLimits((entry(Unit.SPEND, Window.DAY), away)),
        "organization:o_1": SubjectLimits(temporary=(passing,)),
    }
    tier = Tier("free", credential_limits=(entry(Unit.REQUESTS, Window.DAY),))
    snapshot = snapshot_of(
        users=(entry(Unit.PARALLEL, Window.NONE), entry(Unit.TOKENS, Window.MINUTE)),
        service=(),
        limits=limits,
        tiers={"free": tier},
    )

    assert counter_kinds(snapshot) == {
        CounterKind(SubjectKind.MODEL, Unit.SPEND, Window.DAY),
        CounterKind(SubjectKind.ORGANIZATION, Unit.SPEND, Window.TOTAL),
        CounterKind(SubjectKind.KEY, Unit.REQUESTS, Window.DAY),
        CounterKind(SubjectKind.DEVICE, Unit.REQUESTS, Window.DAY),
    }


def test_periods_that_run_anywhere_in_the_world_are_open() -> None:
    last_noon_of_the_year_ms = NOON_MS + 40 * DAY_MS

    assert open_period_ids(NOON_MS) == {"20261121", "20261122", "202611", "total"}
    assert open_period_ids(last_noon_of_the_year_ms) == {
        "20261231",
        "20270101",
        "202612",
        "202701",
        "total",
    }


def test_a_period_has_ended_when_it_has_ended_everywhere() -> None:
    assert latest_end_ms(Window.DAY, "20261121") == NOON_MS + DAY_MS
    assert latest_end_ms(Window.MONTH, "202611") == NOON_MS + 10 * DAY_MS
    assert latest_end_ms(Window.TOTAL, "total") == FOREVER_MS


@pytest.mark.parametrize(
    ("window", "period_id"),
    [(Window.DAY, "202611"), (Window.MONTH, "20261121"), (Window.TOTAL, "202611")],
)
def test_a_period_of_another_window_is_refused(window: Window, period_id: str) -> None:
    with pytest.raises(ValueError, match=period_id):
        latest_end_ms(window, period_id)
