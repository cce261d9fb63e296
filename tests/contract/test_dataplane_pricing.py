"""The data plane's costs against the vectors that both planes share."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataplane.domain.calls import Usage
from dataplane.domain.prices import Price, cost_of, upper_cost

_VECTORS = json.loads((Path(__file__).parent / "vectors" / "pricing.json").read_text("utf-8"))


@pytest.mark.parametrize("case", _VECTORS["cases"], ids=lambda case: case["name"])
def test_the_data_plane_charges_what_the_contract_says(case: dict[str, Any]) -> None:
    price = Price("p", 1, "provider", "model", 0, **case["resolved_rates"])
    tokens = case["tokens"]
    input_total = sum(count for name, count in tokens.items() if name != "output")
    usage = Usage(
        input_total_tokens=input_total,
        input_uncached_tokens=tokens["input_uncached"],
        cache_read_tokens=tokens["cache_read"],
        cache_write_5m_tokens=tokens["cache_write_5m"],
        cache_write_1h_tokens=tokens["cache_write_1h"],
        output_tokens=tokens["output"],
    )

    cost = cost_of(usage, price)

    assert cost == case["cost_nanousd"]
    assert upper_cost(input_total, tokens["output"], price) >= cost
