"""Customers of a stack: an organization, a user and a key, all made by the command line."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import redis

from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

_NUMBERS: Final = count(1)
_KEYS_A_TURN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Spend:
    """What a money layer has counted, in nano-USD."""

    settled: int
    held: int


@dataclass(frozen=True, slots=True)
class Customer:
    """Names are paths; `user_id` is what counters are named by."""

    stack: Stack
    organization: str
    user: str
    user_id: str
    key: str
    api_key: str

    def ledger(self, rows: int) -> list[dict[str, Any]]:
        """Return the user's rows of the ledger as soon as there are `rows` of them.

        Raises:
            AssertionError: There are more, or there were less for too long.
        """
        found = eventually(lambda: self._rows(rows))
        assert len(found) == rows
        return found

    def _rows(self, least: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.stack.tollkeeper("logs", "--user", self.user)
        return found if len(found) >= least else []

    def month(self) -> Spend:
        """Return the user's money counter; it must exist and there is one."""
        with SpendReader(self) as reader:
            return reader.read()


class SpendReader(contextlib.AbstractContextManager["SpendReader"]):
    """Reads the monthly spend of a customer's user from Redis, each time in one step."""

    def __init__(self, customer: Customer) -> None:
        url = customer.stack.line["redis_url"]
        self._redis: redis.Redis = redis.Redis.from_url(url, decode_responses=True)
        self._pattern = f"tk:1:{{g}}:s:*:{customer.user_id}:*"
        self._key = ""

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def read(self) -> Spend:
        """Return it; zero before the first request."""
        if not self._key:
            keys = list(self._redis.scan_iter(match=self._pattern, count=_KEYS_A_TURN))
            if not keys:
                return Spend(0, 0)
            assert len(keys) == 1
            self._key = keys[0]
        settled, held = self._redis.hmget(self._key, ["s", "h"])
        return Spend(int(settled or 0), int(held or 0))


def new_customer(stack: Stack, *limits: str, router: str = "default") -> Customer:
    """Return one that nobody else uses; `limits` are flags of `user create`."""
    organization = f"org-{next(_NUMBERS)}"
    stack.tollkeeper("org", "create", organization)
    user = stack.tollkeeper("user", "create", f"{organization}/alice", *limits)
    name = f"{organization}/alice/laptop"
    key = stack.tollkeeper("key", "create", name, "--router", router)
    return Customer(stack, organization, user["name"], user["id"], name, key["api_key"])


def prices_of(rows: list[dict[str, Any]]) -> Iterator[int]:
    """Yield what each row must have cost, in nano-USD: 1 USD a million tokens in, 2 out."""
    for row in rows:
        yield row["input_total"] * 1_000 + row["output"] * 2_000
