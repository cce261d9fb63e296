import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from dataplane.domain.limiting import Layer, SubjectKind, Unit, Window
from dataplane.domain.quotas import (
    LayerBalance,
    Quota,
    budget_of,
    money,
    quota_document,
    quotas_of,
    used_percentage,
)

NOON_MS = 1_795_262_400_000
USD = 10**9


def layer(unit: Unit, window: Window, capacity: int = 1000, **changes: Any) -> Layer:
    values = {"subject_kind": SubjectKind.USER, "subject_id": "u1", **changes}
    return Layer(unit=unit, window=window, capacity=capacity, **values)


def shown(of: Layer, settled: int, held: int = 0, resets_at_ms: int | None = None) -> Quota:
    [quota] = quotas_of([LayerBalance(of, settled, held, "", resets_at_ms)])
    return quota


def read(quota: Quota) -> dict[str, Any]:
    """Return the document as a caller reads it, with its numbers as they stand there."""
    text = msgspec.json.encode(quota_document(quota))
    document: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return document


def budget(
    subject: SubjectKind = SubjectKind.USER, window: Window = Window.MONTH, **changes: Any
) -> Quota:
    return shown(layer(Unit.SPEND, window, 5 * USD, subject_kind=subject, **changes), 0)


def test_a_count_is_shown_with_what_is_left_and_when_it_is_back() -> None:
    quota = shown(layer(Unit.REQUESTS, Window.DAY), 12, 0, NOON_MS)

    assert read(quota) == {
        "layer": "user_requests_per_day",
        "scope": "user",
        "unit": "requests",
        "window": "day",
        "limit": 1000,
        "used": 12,
        "remaining": 988,
        "resets_at": "2026-11-21T12:00:00Z",
        "shadow": False,
    }


def test_money_is_shown_in_exact_dollars_with_what_is_held() -> None:
    of = layer(Unit.SPEND, Window.TOTAL, 5 * USD, is_hard=False, is_shadow=True)

    assert read(shown(of, 1_100_000_001, 200_000_000)) == {
        "layer": "user_spend_total",
        "scope": "user",
        "unit": "usd",
        "window": "total",
        "limit": 5,
        "used": Decimal("1.100000001"),
        "held": Decimal("0.2"),
        "remaining": Decimal("3.699999999"),
        "resets_at": None,
        "hard": False,
        "shadow": True,
    }


def test_what_is_in_flight_is_back_at_no_time_that_is_known() -> None:
    quota = shown(layer(Unit.PARALLEL, Window.NONE, 4, subject_kind=SubjectKind.KEY), 1)

    document = read(quota)

    assert (document["layer"], document["unit"]) == ("key_parallel", "parallel")
    assert (document["used"], document["remaining"], document["resets_at"]) == (1, 3, None)


def test_a_rate_is_shown_with_what_may_come_at_once() -> None:
    of = layer(Unit.REQUESTS, Window.RATE, 10, every_ms=1000, burst=20)

    assert read(shown(of, 5, 0, NOON_MS)) == {
        "layer": "user_requests_rate",
        "scope": "user",
        "unit": "requests",
        "window": "1s",
        "limit": 10,
        "burst": 20,
        "used": 5,
        "remaining": 15,
        "resets_at": "2026-11-21T12:00:00Z",
        "shadow": False,
    }
    even = read(shown(layer(Unit.REQUESTS, Window.RATE, 10, every_ms=500), 10))
    assert (even["window"], even["burst"], even["remaining"]) == ("500ms", 10, 0)


def test_a_time_within_a_second_is_told_as_its_end() -> None:
    quota = shown(layer(Unit.TOKENS, Window.MINUTE), 1, 0, NOON_MS + 1)

    assert read(quota)["resets_at"] == "2026-11-21T12:00:01Z"


def test_what_was_overshot_leaves_nothing_and_not_less() -> None:
    quota = shown(layer(Unit.SPEND, Window.DAY, 5 * USD, is_hard=False), 6 * USD)

    assert (quota.used, quota.remaining) == (6 * USD, 0)
    assert used_percentage(quota) == Decimal("120.00")


def test_layers_without_public_figures_are_left_out_and_the_others_keep_their_order() -> None:
    layers = (
        layer(Unit.REQUESTS, Window.DAY, subject_kind=SubjectKind.GLOBAL, has_public_figures=False),
        layer(Unit.REQUESTS, Window.DAY),
        layer(Unit.REQUESTS, Window.DAY, subject_kind=SubjectKind.IP, has_public_figures=False),
        layer(Unit.SPEND, Window.DAY),
    )

    quotas = quotas_of(LayerBalance(each, 1, 0, "") for each in layers)

    assert [each.layer for each in quotas] == [layers[1], layers[3]]


NEAREST_FIRST = [
    (SubjectKind.USER, Window.MONTH),
    (SubjectKind.USER, Window.TOTAL),
    (SubjectKind.USER, Window.DAY),
    (SubjectKind.KEY, Window.MONTH),
    (SubjectKind.KEY, Window.DAY),
    (SubjectKind.DEVICE, Window.TOTAL),
    (SubjectKind.ORGANIZATION, Window.MONTH),
    (SubjectKind.ORGANIZATION, Window.DAY),
    (SubjectKind.IP, Window.MONTH),
]


@pytest.mark.parametrize("first", range(len(NEAREST_FIRST)))
def test_the_budget_is_the_nearest_and_the_longest(first: int) -> None:
    budgets = [budget(subject, window) for subject, window in NEAREST_FIRST[first:]]

    assert budget_of(reversed(budgets)) == budgets[0]


def test_only_money_that_refuses_is_a_budget() -> None:
    requests = shown(layer(Unit.REQUESTS, Window.MONTH), 0)
    shadow, real = budget(is_shadow=True), budget(SubjectKind.ORGANIZATION, Window.DAY)

    assert budget_of([requests, shadow, real]) == real
    assert budget_of([requests, shadow]) is None


@pytest.mark.parametrize("subject", SubjectKind)
@pytest.mark.parametrize("window", [Window.DAY, Window.MONTH, Window.TOTAL])
def test_every_budget_there_can_be_is_ranked(subject: SubjectKind, window: Window) -> None:
    assert budget_of([budget(subject, window)]) is not None


@pytest.mark.parametrize(
    ("used", "held", "percentage"),
    [
        (0, 0, "0.00"),
        (1_000_000_000, 0, "20.00"),
        (1_000_000_000, 250_000_000, "25.00"),
        (6_172_500, 0, "0.12"),
        (6_250_000, 0, "0.13"),
        (1, 0, "0.00"),
        (5_000_000_000, 0, "100.00"),
    ],
)
def test_the_share_of_a_budget_has_two_decimals(used: int, held: int, percentage: str) -> None:
    quota = shown(layer(Unit.SPEND, Window.MONTH, 5 * USD), used, held)

    assert str(used_percentage(quota)) == percentage


def test_a_budget_of_nothing_is_used_up() -> None:
    assert used_percentage(shown(layer(Unit.SPEND, Window.MONTH, 0), 0)) == 100


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(0, b"0"), (1, b"0.000000001"), (1_500_000_000, b"1.5"), (2**53, b"9007199.254740992")],
)
def test_money_is_never_a_float(nanousd: int, text: bytes) -> None:
    assert msgspec.json.encode(money(nanousd)) == text
