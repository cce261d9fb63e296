from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.customers import Customer, new_customer
from tests.e2e.leaks import leaks
from tests.e2e.plain_http import NO_TLS
from tests.e2e.stack import Stack

# The whole service has a budget a day: enough for all tests together. And tests stand for a proxy
# that says which address a client has.
SETTINGS = {
    "TOLLKEEPER_DAILY_REQUESTS": "1000000",
    "TOLLKEEPER_DAILY_BUDGET_USD": "1000",
    "TOLLKEEPER_TRUSTED_PROXIES": "127.0.0.0/8",
}


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of two replicas that all tests share which leave it as it was."""
    running = Stack(tmp_path_factory.mktemp("shared"), environ=SETTINGS)
    yield running
    running.stop()
    assert leaks(running) == []


@pytest.fixture
def customer(stack: Stack) -> Customer:
    """A customer of the shared stack with limits that no test reaches."""
    unlimited = ("--daily-requests", "none", "--daily-tokens", "none")
    return new_customer(stack, *unlimited, "--monthly-budget-usd", "100")


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """A plain client without credentials."""
    with httpx.Client(trust_env=False, verify=NO_TLS, timeout=30) as client:
        yield client
