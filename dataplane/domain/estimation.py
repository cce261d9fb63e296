"""The most a call can consume, before it is made."""

from typing import Final

from dataplane.domain.calls import Call, Usage
from dataplane.domain.limiting import Demand, Layer, Standing, Unit
from dataplane.domain.prices import TOKENS_PER_PRICE_UNIT, Price, cost_of, upper_cost

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


def demand_of(
    call: Call,
    price: Price,
    output_cap_tokens: int | None,
    expected_output_tokens: int | None = None,
) -> Demand:
    """Return the most that `call` can take with so many output tokens for each choice.

    Args:
        call: The call.
        price: What its model costs.
        output_cap_tokens: For each choice; None: nothing bounds the output, and nothing that needs a
            bound counts it.
        expected_output_tokens: Of all choices, where a soft budget reserves what is expected.
    """
    output_tokens = (output_cap_tokens or 0) * call.choices
    cost = upper_cost(call.input_upper_tokens, output_tokens, price)
    expected = None
    if expected_output_tokens is not None:
        expected = expected_cost(call, price, expected_output_tokens)
        if output_cap_tokens is not None:
            expected = min(expected, cost)
    return Demand(
        tokens=call.input_upper_tokens + output_tokens,
        cost_nanousd=cost,
        expected_nanousd=expected,
    )


def expected_cost(call: Call, price: Price, output_tokens: int) -> int:
    """Return what `call` probably costs, in nano-USD, when it is answered with so many tokens."""
    reads = call.input_estimate_tokens
    usage = Usage(
        input_total_tokens=reads, input_uncached_tokens=reads, output_tokens=output_tokens
    )
    return cost_of(usage, price)


def affordable_output_tokens(call: Call, price: Price, standings: tuple[Standing, ...]) -> int:
    """Return how many output tokens for each choice every layer still has room for."""
    bounds = [
        _room(call, price, standing) for standing in standings if _bounds_output(standing.layer)
    ]
    return max(0, min(bounds, default=0))


def _bounds_output(layer: Layer) -> bool:
    """Return whether a layer reserves an upper bound of the output: soft budgets do not."""
    if layer.is_shadow:
        return False
    return layer.unit is Unit.TOKENS or (layer.unit is Unit.SPEND and layer.is_hard)


def _room(call: Call, price: Price, standing: Standing) -> int:
    if standing.layer.unit is Unit.TOKENS:
        return (standing.remaining - call.input_upper_tokens) // call.choices
    money = (standing.remaining - price.request_nanousd) * TOKENS_PER_PRICE_UNIT
    money -= call.input_upper_tokens * price.dearest_input
    if price.output == 0:
        return call.output_cap_tokens or TOKENS_PER_DOCUMENT if money >= 0 else 0
    return money // (price.output * call.choices)
