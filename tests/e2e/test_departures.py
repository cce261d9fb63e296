"""Callers that leave: what they used is charged, and nothing goes on without them."""

import time

import httpx

from tests.e2e.customers import Customer, prices_of
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

# Ten seconds long, if it were read to its end.
TOKENS = 500
MODEL = f"mock-tokens-{TOKENS}-pace-20"
CANCELLED_WITHIN_S = 1.0


def test_a_client_that_leaves_mid_stream_ends_the_call_upstream_and_pays_for_what_was_used(
    stack: Stack, customer: Customer, http: httpx.Client
) -> None:
    for number, (path, stream_of) in enumerate(
        (("/v1/chat/completions", '"content":"lore'), ("/v1/messages", "text_delta")), start=1
    ):
        http.post(f"{stack.mock_url}/mock/reset").raise_for_status()
        leave_mid_stream(stack.base_urls[0] + path, customer.api_key, stream_of)
        left_at = time.monotonic()

        eventually(lambda: stats(http, stack)["cancelled_streams"] == 1, CANCELLED_WITHIN_S)
        assert time.monotonic() - left_at <= CANCELLED_WITHIN_S
        assert stats(http, stack)["open_streams"] == 0
        row = customer.ledger(number)[0]
        assert (row["state"], row["status"]) == ("settled", 499)
        # What had arrived is counted; a provider that told the input at the start is believed.
        assert row["source"] in ("estimated", "partial")
        assert 0 < row["output"] < TOKENS
        assert row["output"] <= stats(http, stack)["output_tokens"]
    rows = customer.ledger(2)
    assert [row["cost_nanousd"] for row in rows] == list(prices_of(rows))
    month = customer.month()
    assert (month.settled, month.held) == (sum(prices_of(rows)), 0)


def leave_mid_stream(url: str, api_key: str, wanted: str) -> None:
    """Read a stream up to its first content, then close the connection."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": TOKENS,
        "stream": True,
    }
    with (
        httpx.Client(trust_env=False, timeout=30) as client,
        client.stream("POST", url, json=body, headers={"x-api-key": api_key}) as response,
    ):
        assert any(wanted in line for line in response.iter_lines())


def stats(http: httpx.Client, stack: Stack) -> dict[str, int]:
    answer: dict[str, int] = http.get(f"{stack.mock_url}/mock/stats").json()
    return answer
