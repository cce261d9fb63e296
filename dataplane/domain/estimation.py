"""The most a call can consume, before it is made."""

from typing import Final

from dataplane.domain.calls import Call
from dataplane.domain.limiting import Demand, LayerPlan, Standing, Unit
from dataplane.domain.prices import TOKENS_PER_PRICE_UNIT, Price, upper_cost

# A token covers at least one byte; roles and templates of a message cost a few tokens more.
TOKENS_PER_MESSAGE: Final = 16
# Providers add a prompt of their own to a call with tools: 160 to 350 tokens in recorded traffic,
# up to 804 by Anthropic's page on tool use.
TOKENS_FOR_TOOLS: Final = 1_024
# The dearest picture known: gpt-4o-mini, high detail, 8 tiles of 5,667 and a base of 2,833.
TOKENS_PER_IMAGE: Final = 50_000
# Documents and other files: a long context window is the most that any of them can fill.
TOKENS_PER_DOCUMENT: Final = 200_000
# Fewer output tokens than this answer nobody (limits page, section 5).
LEAST_OUTPUT_TOKENS: Final = 16


def needs_output_cap(plan: LayerPlan) -> bool:
    """Return whether a layer counts tokens or money, so that the output must have a bound."""
    return any(layer.unit in (Unit.TOKENS, Unit.SPEND) for layer in plan.layers)


def demand_of(call: Call, price: Price, output_cap_tokens: int) -> Demand:
    """Return the most that `call` can take with so many output tokens for each choice."""
    output_tokens = output_cap_tokens * call.choices
    return Demand(
        tokens=call.input_upper_tokens + output_tokens,
        cost_nanousd=upper_cost(call.input_upper_tokens, output_tokens, price),
    )


def affordable_output_tokens(call: Call, price: Price, standings: tuple[Standing, ...]) -> int:
    """Return how many output tokens for each choice every layer still has room for."""
    bounds = [
        _room(call, price, standing)
        for standing in standings
        if standing.layer.unit in (Unit.TOKENS, Unit.SPEND) and not standing.layer.is_shadow
    ]
    return max(0, min(bounds, default=0))


def _room(call: Call, price: Price, standing: Standing) -> int:
    if standing.layer.unit is Unit.TOKENS:
        return (standing.remaining - call.input_upper_tokens) // call.choices
    money = (standing.remaining - price.request_nanousd) * TOKENS_PER_PRICE_UNIT
    money -= call.input_upper_tokens * price.dearest_input
    if price.output == 0:
        return call.output_cap_tokens or TOKENS_PER_DOCUMENT if money >= 0 else 0
    return money // (price.output * call.choices)
