"""Layers, their order, and what makes a plan valid."""

import random
from dataclasses import replace

import pytest

from dataplane.domain.limiting import (
    MAX_AMOUNT,
    Demand,
    Layer,
    LayerKind,
    SubjectKind,
    Unit,
    Window,
    plan_of,
)

DAILY = Layer(SubjectKind.USER, "u_1", Unit.REQUESTS, Window.DAY, 5)


@pytest.mark.parametrize(
    ("unit", "window", "kind", "name"),
    [
        (Unit.REQUESTS, Window.MINUTE, LayerKind.ROLLING, "user_requests_per_minute"),
        (Unit.TOKENS, Window.MINUTE, LayerKind.ROLLING, "user_tokens_per_minute"),
        (Unit.REQUESTS, Window.DAY, LayerKind.PERIOD, "user_requests_per_day"),
        (Unit.TOKENS, Window.MONTH, LayerKind.PERIOD, "user_tokens_per_month"),
        (Unit.TOKENS, Window.TOTAL, LayerKind.PERIOD, "user_tokens_total"),
        (Unit.SPEND, Window.DAY, LayerKind.SPEND, "user_spend_per_day"),
        (Unit.SPEND, Window.MONTH, LayerKind.SPEND, "user_spend_per_month"),
        (Unit.SPEND, Window.TOTAL, LayerKind.SPEND, "user_spend_total"),
        (Unit.PARALLEL, Window.NONE, LayerKind.PARALLEL, "user_parallel"),
    ],
)
def test_unit_and_window_decide_how_a_layer_counts(
    unit: Unit, window: Window, kind: LayerKind, name: str
) -> None:
    layer = replace(DAILY, unit=unit, window=window)

    assert (layer.kind, layer.name) == (kind, name)


@pytest.mark.parametrize(
    ("unit", "window"),
    [
        (Unit.SPEND, Window.MINUTE),
        (Unit.PARALLEL, Window.DAY),
        (Unit.REQUESTS, Window.NONE),
    ],
)
def test_a_window_that_does_not_fit_its_unit_is_refused(unit: Unit, window: Window) -> None:
    with pytest.raises(ValueError, match="cannot be limited"):
        replace(DAILY, unit=unit, window=window)


@pytest.mark.parametrize("capacity", [-1, MAX_AMOUNT + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        replace(DAILY, capacity=capacity)


@pytest.mark.parametrize("time_zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_a_time_zone_that_does_not_exist_is_refused(time_zone: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(DAILY, time_zone=time_zone)


def test_layers_bind_from_the_widest_subject_to_the_narrowest() -> None:
    in_order = [
        Layer(kind, "x", unit, window, 1)
        for kind in SubjectKind
        for unit, window in (
            (Unit.REQUESTS, Window.MINUTE),
            (Unit.SPEND, Window.DAY),
            (Unit.PARALLEL, Window.NONE),
        )
    ]
    shuffled = random.Random(7).sample(in_order, len(in_order))

    assert list(plan_of(shuffled).layers) == in_order


def test_within_a_subject_rolling_comes_before_period_before_spend_before_parallel() -> None:
    in_order = [
        replace(DAILY, unit=unit, window=window)
        for unit, window in (
            (Unit.REQUESTS, Window.MINUTE),
            (Unit.TOKENS, Window.MINUTE),
            (Unit.REQUESTS, Window.DAY),
            (Unit.REQUESTS, Window.TOTAL),
            (Unit.TOKENS, Window.DAY),
            (Unit.SPEND, Window.DAY),
            (Unit.SPEND, Window.MONTH),
            (Unit.PARALLEL, Window.NONE),
        )
    ]

    assert list(plan_of(reversed(in_order)).layers) == in_order


def test_more_than_twenty_four_layers_are_refused() -> None:
    layers = [replace(DAILY, subject_id=f"u_{number}") for number in range(25)]

    assert len(plan_of(layers[:24]).layers) == 24
    with pytest.raises(ValueError, match="at most 24"):
        plan_of(layers)


def test_two_layers_of_one_counter_are_refused() -> None:
    with pytest.raises(ValueError, match="share one counter"):
        plan_of([DAILY, replace(DAILY, capacity=9)])


def test_a_plan_knows_its_first_layer_that_refuses_everything() -> None:
    nothing = replace(DAILY, window=Window.MONTH, capacity=0)

    assert plan_of([DAILY, nothing]).closed_layer == nothing
    assert plan_of([DAILY, replace(nothing, is_shadow=True)]).closed_layer is None


@pytest.mark.parametrize(("tokens", "cost_nanousd"), [(-1, 0), (0, -1), (MAX_AMOUNT + 1, 0)])
def test_a_demand_out_of_range_is_refused(tokens: int, cost_nanousd: int) -> None:
    with pytest.raises(ValueError, match="demand"):
        Demand(tokens, cost_nanousd)
