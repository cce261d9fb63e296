from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.estimation import affordable_output_tokens, demand_of
from dataplane.domain.limiting import Layer, Standing, SubjectKind, Unit, Window, plan_of
from tests.unit.dataplane.configuration import call, price


def standing(unit: Unit, remaining: int, *, is_shadow: bool = False) -> Standing:
    window = Window.NONE if unit is Unit.PARALLEL else Window.DAY
    layer = Layer(SubjectKind.USER, "u", unit, window, 2**53, is_shadow=is_shadow)
    return Standing(layer, remaining, 0, "")


@given(
    st.integers(0, 10**6), st.integers(1, 128), st.integers(0, 10**11), st.integers(0, 10**11),
    st.integers(0, 10**14), st.integers(0, 10**9), st.integers(0, 10**6),
)  # fmt: skip
def test_what_is_affordable_fits_and_one_token_more_does_not(
    reads: int, choices: int, rate_in: int, rate_out: int, money: int, tokens: int, fee: int
) -> None:
    one = call(input_upper_tokens=reads, choices=choices)
    at = price(input=rate_in, output=rate_out, cache_write_1h=0, request_nanousd=fee)
    standings = (standing(Unit.SPEND, money), standing(Unit.TOKENS, tokens))

    cap = affordable_output_tokens(one, at, standings)

    def fits(output: int) -> bool:
        demand = demand_of(one, at, output)
        return demand.cost_nanousd <= money and demand.tokens <= tokens

    assert cap >= 0
    if cap > 0:
        assert fits(cap)
    if rate_out > 0:
        assert not fits(cap + 1)


def test_only_tokens_and_money_bound_the_output() -> None:
    standings = (
        standing(Unit.REQUESTS, 1),
        standing(Unit.PARALLEL, 1),
        standing(Unit.TOKENS, 0, is_shadow=True),
        standing(Unit.TOKENS, 150),
    )
    assert affordable_output_tokens(call(input_upper_tokens=100), price(), standings) == 50


@pytest.mark.parametrize(
    ("unit", "needs"),
    [(Unit.TOKENS, True), (Unit.SPEND, True), (Unit.REQUESTS, False), (Unit.PARALLEL, False)],
)
def test_a_cap_is_needed_where_output_is_counted(unit: Unit, needs: bool) -> None:
    assert plan_of([standing(unit, 1).layer]).counts_output is needs
    assert not plan_of([standing(unit, 1, is_shadow=True).layer]).counts_output
    assert not plan_of([]).counts_output


def test_soft_budgets_need_no_cap_and_hard_ones_beside_them_do() -> None:
    soft = Layer(SubjectKind.USER, "u", Unit.SPEND, Window.MONTH, 1, is_hard=False)
    hard = Layer(SubjectKind.USER, "u", Unit.SPEND, Window.DAY, 1)
    assert (plan_of([soft]).counts_output, plan_of([soft]).has_soft_budget) == (False, True)
    assert plan_of([soft, hard]).counts_output
    assert plan_of([soft, hard]).has_hard_budget
    assert not plan_of([replace(hard, is_shadow=True)]).has_hard_budget


def test_what_is_expected_is_never_above_what_a_cap_allows() -> None:
    one = call(input_upper_tokens=100, input_estimate_tokens=25)
    at = price(input=10**9, output=2 * 10**9, cache_write_1h=0)

    capped = demand_of(one, at, 10, 512)
    open_ended = demand_of(one, at, None, 512)

    assert capped.soft_nanousd == capped.cost_nanousd
    assert open_ended.soft_nanousd == 25 * 1_000 + 512 * 2_000
    assert demand_of(one, at, 10).soft_nanousd == capped.cost_nanousd
