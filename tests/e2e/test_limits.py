"""Limits hold over both replicas, whatever is asked at once, and change while everything runs."""

import asyncio
import threading
import time
from collections import Counter
from itertools import cycle

import httpx

from tests.e2e.calls import client_of
from tests.e2e.customers import Customer, SpendReader, new_customer, prices_of
from tests.e2e.stack import Stack

CAP_NANOUSD = 50_000_000
# What the surface promises for everything that an administrator changes.
PROPAGATION_S = 1.0


class Watcher(threading.Thread):
    """Reads a customer's money from Redis over and over, in a thread beside the load."""

    def __init__(self, customer: Customer) -> None:
        super().__init__(daemon=True)
        self._customer = customer
        self._is_over = threading.Event()
        self.most_in_all = 0
        self.most_held = 0
        self.readings = 0

    def run(self) -> None:
        with SpendReader(self._customer) as reader:
            while not self._is_over.is_set():
                spend = reader.read()
                self.most_in_all = max(self.most_in_all, spend.settled + spend.held)
                self.most_held = max(self.most_held, spend.held)
                self.readings += 1

    def stop(self) -> None:
        self._is_over.set()
        self.join(10)
        assert not self.is_alive()


def reset_mock(stack: Stack, http: httpx.Client) -> None:
    http.post(f"{stack.mock_url}/mock/reset").raise_for_status()


def mock_stats(stack: Stack, http: httpx.Client) -> dict[str, int]:
    stats: dict[str, int] = http.get(f"{stack.mock_url}/mock/stats").json()
    return stats


async def test_of_200_calls_at_once_over_both_replicas_exactly_the_50_of_the_day_are_admitted(
    stack: Stack,
) -> None:
    customer = new_customer(
        stack, "--daily-requests", "50", "--daily-tokens", "none", "--requests-per-minute", "none"
    )

    async with client_of(customer.api_key) as client:
        replicas = cycle(stack.base_urls)
        answers = await asyncio.gather(*(client.chat(next(replicas)) for _ in range(200)))

    seen = Counter((answer.status, answer.code) for answer in answers)
    assert seen == {(200, ""): 50, (429, "rate_limit_exceeded"): 150}
    admitted = {answer.request_id for answer in answers if answer.status == 200}
    assert {row["id"] for row in customer.ledger(50)} == admitted


async def test_a_monthly_cap_is_never_overshot_by_1000_streams_at_once_and_the_ledger_is_exact(
    stack: Stack, http: httpx.Client
) -> None:
    customer = new_customer(
        stack,
        *("--monthly-budget-usd", "0.05", "--daily-requests", "none"),
        *("--daily-tokens", "none", "--requests-per-minute", "none"),
    )
    reset_mock(stack, http)
    watcher = Watcher(customer)
    watcher.start()
    try:
        async with client_of(customer.api_key) as client:
            replicas = cycle(stack.base_urls)
            answers = await asyncio.gather(
                *(
                    client.chat(
                        next(replicas), model="mock-tokens-64-pace-1", stream=True, max_tokens=64
                    )
                    for _ in range(1_000)
                )
            )
    finally:
        watcher.stop()

    seen = Counter((answer.status, answer.code, answer.is_whole) for answer in answers)
    admitted = seen[200, "", True]
    assert seen == {(200, "", True): admitted, (429, "insufficient_quota", True): 1_000 - admitted}
    assert admitted > 100
    assert watcher.most_in_all <= CAP_NANOUSD
    # Otherwise it saw nothing of the race that it is about.
    assert watcher.most_held > CAP_NANOUSD // 2
    assert watcher.readings > 50

    served = mock_stats(stack, http)
    assert served["requests"] == admitted
    rows = customer.ledger(admitted)
    assert {row["state"] for row in rows} == {"settled"}
    # Each of them is a whole number of nano-USD, so that rounding each up changes nothing.
    assert [row["cost_nanousd"] for row in rows] == list(prices_of(rows))
    of_mock = served["input_tokens"] * 1_000 + served["output_tokens"] * 2_000
    assert sum(row["cost_nanousd"] for row in rows) == of_mock
    spend = customer.month()
    assert (spend.settled, spend.held) == (of_mock, 0)


async def test_a_limit_that_is_set_at_run_time_is_in_force_on_both_replicas_within_a_second(
    stack: Stack, customer: Customer
) -> None:
    async with client_of(customer.api_key) as client:
        for base_url in stack.base_urls:
            assert (await client.chat(base_url)).status == 200

        for limit, wanted in (("2", 429), ("1000", 200)):
            stack.tollkeeper("limit", "set", "--user", customer.user, "--requests-per-day", limit)
            ends_at = time.monotonic() + PROPAGATION_S
            for base_url in stack.base_urls:
                while (answer := await client.chat(base_url)).status != wanted:
                    assert time.monotonic() < ends_at, answer
