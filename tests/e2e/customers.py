"""Customers of a stack: a user and a key, made by the command line."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import httpx
import redis

from dataplane.domain.limiting import LayerKind
from dataplane.limits.counters import Keyspace
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

_NUMBERS: Final = count(1)
_KEYS_A_TURN: Final = 1_000
ORGANIZATION: Final = "acme"


@dataclass(frozen=True, slots=True)
class Spend:
    """What a money layer has counted, in nano-USD."""

    settled: int
    held: int


@dataclass(frozen=True, slots=True)
class Customer:
    """Names are paths; `user_id` is what counters are named by."""

    stack: Stack
    user: str
    user_id: str
    key: str
    api_key: str

    def ledger(self, rows: int) -> list[dict[str, Any]]:
        """Return the user's rows of the ledger as soon as there are `rows` of them.

        Raises:
            AssertionError: There are more, or there were less for too long.
        """
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = self.stack.tollkeeper("logs", "--user", self.user)
            return len(found) >= rows

        with contextlib.suppress(AssertionError):
            eventually(is_there)
        assert len(found) == rows, [(row["id"], row["state"], row["node"]) for row in found]
        return found

    def month(self) -> Spend:
        """Return the user's money counter; it must exist and there is one."""
        with SpendReader(self) as reader:
            spend = reader.read()
            assert reader.has_begun, "nothing counts this user's money"
            return spend


class SpendReader(contextlib.AbstractContextManager["SpendReader"]):
    """Reads the monthly spend of a customer's user from Redis, each time in one step."""

    def __init__(self, customer: Customer) -> None:
        url = customer.stack.line["redis_url"]
        self._redis: redis.Redis = redis.Redis.from_url(url, decode_responses=True)
        self._pattern = f"{Keyspace().prefix}{LayerKind.SPEND}:*:{customer.user_id}:*"
        self._key = ""

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    @property
    def has_begun(self) -> bool:
        """Return whether anything was counted yet."""
        return bool(self._key)

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
    """Return one with a user and a key that nobody else uses, when every data plane knows the key.

    `limits` are flags of `user create`. All customers of a stack share an organization, which has
    no limits of its own.
    """
    user = new_user(stack, *limits)
    key = f"{user['name']}/laptop"
    api_key = stack.tollkeeper("key", "create", key, "--router", router)["api_key"]
    for base_url in stack.base_urls:

        def is_known(url: str = f"{base_url}/v1/models") -> bool:
            headers = {"authorization": f"Bearer {api_key}"}
            return httpx.get(url, headers=headers, trust_env=False, timeout=10).status_code == 200

        # A data plane may still be on its way back to a control plane that was restarted.
        eventually(is_known)
    return Customer(stack, user["name"], user["id"], key, api_key)


def new_user(stack: Stack, *limits: str) -> dict[str, Any]:
    """Return a new user of the organization, as `user create` printed it."""
    if not stack.has_organization:
        stack.tollkeeper("org", "create", ORGANIZATION)
        stack.has_organization = True
    name = f"{ORGANIZATION}/user-{next(_NUMBERS)}"
    user: dict[str, Any] = stack.tollkeeper("user", "create", name, *limits)
    return user


def prices_of(rows: list[dict[str, Any]]) -> Iterator[int]:
    """Yield what each row must have cost, in nano-USD: 1 USD a million tokens in, 2 out."""
    for row in rows:
        yield row["input_total"] * 1_000 + row["output"] * 2_000
