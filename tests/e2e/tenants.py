"""Tenants of a stack: an organization of their own, with a user and a key."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final

import httpx

from tests.e2e.administration import Administrator
from tests.e2e.plain_http import NO_TLS
from tests.e2e.waiting import eventually

# Counted, and reached by no test.
AMPLE: Final = (
    *("--daily-requests", "1000000", "--daily-tokens", "1000000000"),
    *("--requests-per-minute", "none", "--monthly-budget-usd", "1000"),
)
_NUMBERS: Final = count(1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization that nobody else uses; names are paths, ids are what counters are named by."""

    admin: Administrator
    organization: str
    organization_id: str
    user: str
    user_id: str
    key: str
    api_key: str

    @property
    def headers(self) -> dict[str, str]:
        """What its calls carry."""
        return {"authorization": f"Bearer {self.api_key}"}

    def rows(self) -> list[dict[str, Any]]:
        """Return what the ledger has of it by now, newest first."""
        rows: list[dict[str, Any]] = self.admin("logs", "--user", self.user)
        return rows

    def ledger(self, rows: int) -> list[dict[str, Any]]:
        """Return its rows of the ledger as soon as there are `rows` of them; never more."""
        found = self.ledger_has(rows)
        assert len(found) == rows, [(row["id"], row["state"], row["node"]) for row in found]
        return found

    def ledger_has(self, rows: int) -> list[dict[str, Any]]:
        """Return its rows of the ledger as soon as there are at least `rows` of them."""
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            found[:] = self.rows()
            return len(found) >= rows

        eventually(are_there)
        return found

    def quota(self, base_url: str) -> dict[str, dict[str, Any]]:
        """Return what `/v1/llm/quota` says of each layer, by its name."""
        answer = httpx.get(
            f"{base_url}/v1/llm/quota",
            headers=self.headers,
            trust_env=False,
            verify=NO_TLS,
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        return {each["layer"]: each for each in answer.json()["limits"]}


def new_tenant(
    admin: Administrator, *of_organization: str, of_user: Sequence[str] = AMPLE
) -> Tenant:
    """Return one whose key every data plane knows; its user's limits are reached by no test unless told otherwise.

    Args:
        admin: Makes it.
        of_organization: Flags of `org create`.
        of_user: Flags of `user create`.
    """
    name = f"tenant-{next(_NUMBERS)}"
    organization = admin("org", "create", name, *of_organization)
    user = admin("user", "create", f"{name}/ann", *of_user)
    key = f"{name}/ann/laptop"
    api_key = admin("key", "create", key)["api_key"]
    tenant = Tenant(admin, name, organization["id"], f"{name}/ann", user["id"], key, api_key)
    for base_url in admin.stack.base_urls:
        eventually(partial(_is_known, tenant, f"{base_url}/v1/models"))
    return tenant


def _is_known(tenant: Tenant, url: str) -> bool:
    answer = httpx.get(url, headers=tenant.headers, trust_env=False, verify=NO_TLS, timeout=10)
    # A paused or unrouted one is known, too.
    return answer.status_code != 401
