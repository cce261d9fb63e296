import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.domain.estimation import affordable_output_tokens, demand_of, needs_output_cap
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
    assert needs_output_cap(plan_of([standing(unit, 1).layer])) is needs
    assert not needs_output_cap(plan_of([]))
