"""Limits change while everything runs: in force on every replica within a second, and nothing that was counted is lost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, product
from typing import Any, Final

import httpx
import pytest

from tests.e2e.administration import AGREEMENT_S, Administrator
from tests.e2e.counting import Counters
from tests.e2e.plain_http import NO_TLS
from tests.e2e.stack import Stack
from tests.e2e.tenants import Tenant, new_tenant
from tests.e2e.waiting import eventually

# What the surface promises for everything that an administrator changes.
PROPAGATION_S: Final = 1.0
TENTH: Final = "mock-tokens-1"
"""A model whose every call costs a tenth of a dollar, not more and not less."""
TENTH_NANOUSD: Final = 100_000_000


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Iterator[Administrator]:
    """The administrator of the shared stack, who has priced `TENTH` for these tests."""
    administrator = Administrator(stack)
    price = administrator(
        *("price", "set", "--provider", "mock", "--model", TENTH, "--request-usd", "0.1")
    )
    yield administrator
    administrator("price", "delete", price["id"])


def chat(
    tenant: Tenant, base_url: str, *, model: str = TENTH, path: str = "/v1/chat/completions"
) -> httpx.Response:
    """Make one call and read its answer."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(
        f"{base_url}{path}",
        json=body,
        headers=tenant.headers,
        trust_env=False,
        verify=NO_TLS,
        timeout=20,
    )


def refused_by(answer: httpx.Response) -> str:
    """Return the layer that refused; nothing when it was admitted."""
    if answer.status_code == 200:
        return ""
    layer: str = answer.json()["error"]["details"]["layer"]
    return layer


def everywhere(tenant: Tenant, wanted: Callable[[httpx.Response], bool]) -> int:
    """Call every replica until each answers as wanted; return how many calls were admitted.

    Raises:
        AssertionError: Some did not within a second.
    """
    ends_at = time.monotonic() + PROPAGATION_S
    admitted = 0
    for base_url in tenant.admin.stack.base_urls:
        while True:
            answer = chat(tenant, base_url)
            admitted += answer.status_code == 200
            if wanted(answer):
                break
            assert time.monotonic() < ends_at, answer.text
    return admitted


def is_admitted(answer: httpx.Response) -> bool:
    return answer.status_code == 200


def is_refused_by(layer: str) -> Callable[[httpx.Response], bool]:
    return lambda answer: refused_by(answer) == layer


def test_a_limit_is_raised_and_lowered_on_both_replicas_and_keeps_its_count(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin)
    at = cycle(stack.base_urls)
    for _ in range(4):
        assert is_admitted(chat(tenant, next(at)))
    day = ("limit", "set", "--user", tenant.user, "--requests-per-day")

    admin(*day, "4")
    # Those that came before it was in force count as well.
    used = 4 + everywhere(tenant, is_refused_by("user_requests_per_day"))
    admin(*day, str(used + 3))
    assert everywhere(tenant, is_admitted) == 2
    assert [chat(tenant, next(at)).status_code for _ in range(3)] == [200, 429, 429]
    admin(*day, "3")
    for base_url in stack.base_urls:
        eventually(partial(has_room, tenant, base_url, (3, used + 3, 0)), PROPAGATION_S)
        assert refused_by(chat(tenant, base_url)) == "user_requests_per_day"
    admin(*day, "none")
    everywhere(tenant, is_admitted)


def has_room(tenant: Tenant, base_url: str, wanted: tuple[int, int, int]) -> bool:
    layer = tenant.quota(base_url)["user_requests_per_day"]
    return (layer["limit"], layer["used"], layer["remaining"]) == wanted


def test_a_budget_that_is_set_in_mid_month_counts_what_was_spent_before(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin)
    at = cycle(stack.base_urls)
    for _ in range(5):
        assert is_admitted(chat(tenant, next(at)))
    tenant.ledger(5)

    admin("limit", "set", "--org", tenant.organization, "--monthly-budget-usd", "0.4")
    between = everywhere(tenant, is_refused_by("organization_spend_per_month"))
    admin("limit", "set", "--org", tenant.organization, "--monthly-budget-usd", "100")
    after = everywhere(tenant, is_admitted)
    rows = tenant.ledger(5 + between + after)
    assert sum(row["charged_nanousd"] for row in rows) == len(rows) * TENTH_NANOUSD
    with Counters(stack) as counters:
        counted, _ = counters.spend("organization_spend_per_month", tenant.organization_id)
    assert counted >= (5 + after) * TENTH_NANOUSD


@pytest.mark.long
def test_calls_of_the_moment_in_which_a_budget_is_set_are_counted_too(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(chat, tenant, url) for url in stack.base_urls * 100]
        tenant.ledger_has(50)
        admin("limit", "set", "--org", tenant.organization, "--monthly-budget-usd", "100")
        assert all(is_admitted(call.result()) for call in calls)
    charged = sum(row["charged_nanousd"] for row in tenant.ledger(200))

    def is_exact() -> bool:
        with Counters(stack) as counters:
            layer, subject_id = "organization_spend_per_month", tenant.organization_id
            return counters.spend(layer, subject_id) == (charged, 0)

    eventually(is_exact, AGREEMENT_S)


def test_a_temporary_limit_takes_over_at_once_and_ends_by_itself(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin)
    at = cycle(stack.base_urls)
    admin("limit", "set", "--user", tenant.user, "--requests-per-day", "2")
    for base_url in stack.base_urls:
        eventually(partial(has_room, tenant, base_url, (2, 0, 2)), PROPAGATION_S)
    assert everywhere(tenant, is_admitted) == 2
    assert not is_admitted(chat(tenant, next(at)))

    began = time.monotonic()
    override = ("limit", "override", "--user", tenant.user, "--requests-per-day", "1000")
    admin(*override, "--for", "3s")
    everywhere(tenant, is_admitted)
    while is_admitted(chat(tenant, next(at))):
        assert time.monotonic() - began < 3 + PROPAGATION_S
    assert time.monotonic() - began > 2
    for base_url in stack.base_urls:
        assert refused_by(chat(tenant, base_url)) == "user_requests_per_day"
    # Nothing of it is left for the next one to fall back to.
    admin(
        "budget", "override", "--org", tenant.organization, "--total-budget-usd", "0", "--for", "1h"
    )
    everywhere(tenant, is_refused_by("organization_spend_total"))
    admin("limit", "delete", "--org", tenant.organization, "--temporary")
    everywhere(tenant, is_refused_by("user_requests_per_day"))


def test_a_reset_lets_budget_and_quota_begin_anew_on_both_replicas(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin, "--total-budget-usd", "0.4")
    at = cycle(stack.base_urls)
    for _ in range(4):
        assert is_admitted(chat(tenant, next(at)))
    assert refused_by(chat(tenant, next(at))) == "organization_spend_total"

    admin("budget", "reset", "--org", tenant.organization)
    assert everywhere(tenant, is_admitted) == 2
    assert [chat(tenant, next(at)).status_code for _ in range(3)] == [200, 200, 429]

    admin("limit", "set", "--org", tenant.organization, "--total-budget-usd", "100")
    admin("limit", "set", "--user", tenant.user, "--requests-per-day", "3")
    late = everywhere(tenant, is_refused_by("user_requests_per_day"))
    admin("user", "reset-quota", tenant.user)
    assert everywhere(tenant, is_admitted) == 2
    assert [chat(tenant, next(at)).status_code for _ in range(2)] == [200, 429]
    # What was spent stays where it was: in the ledger.
    rows = tenant.ledger(11 + late)
    assert sum(row["charged_nanousd"] for row in rows) == len(rows) * TENTH_NANOUSD


def test_a_budget_that_is_set_after_a_reset_counts_what_was_spent_since(
    stack: Stack, admin: Administrator
) -> None:
    tenant = new_tenant(admin)
    admin("limit", "set", "--user", tenant.user, "--requests-per-day", "2")
    everywhere(tenant, is_refused_by("user_requests_per_day"))
    admin("user", "reset-quota", tenant.user)
    # Nothing limits the user's money when this is spent: 0.2 USD.
    assert everywhere(tenant, is_admitted) == 2

    admin("limit", "set", "--user", tenant.user, "--requests-per-day", "100")
    admin("limit", "set", "--user", tenant.user, "--total-budget-usd", "0.25")

    def used_usd(url: str) -> object:
        return tenant.quota(url).get("user_spend_total", {}).get("used")

    for base_url in stack.base_urls:
        eventually(lambda url=base_url: used_usd(url) == 0.2, AGREEMENT_S)  # type: ignore[misc] # mypy cannot infer a default
    assert [refused_by(chat(tenant, url)) for url in stack.base_urls] == ["user_spend_total"] * 2


def test_a_rate_lets_a_burst_through_and_then_its_pace(stack: Stack, admin: Administrator) -> None:
    tenant = new_tenant(admin)
    rate = ("--requests", "10", "--every", "1s", "--burst", "20")
    admin("limit", "set", "--key", tenant.key, *rate)
    layer = "key_requests_rate"
    for base_url in stack.base_urls:
        eventually(lambda url=base_url: layer in tenant.quota(url), PROPAGATION_S)  # type: ignore[misc] # mypy cannot infer a default

    began = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        urls = [stack.base_urls[turn % 2] for turn in range(40)]
        answers = list(pool.map(lambda url: refused_by(chat(tenant, url)), urls))
    seen = Counter(answers)
    took_s = time.monotonic() - began
    assert set(seen) == {"", layer}
    assert 20 <= seen[""] <= 20 + 10 * took_s + 1

    # Asking all the time for a while gives the pace, whoever answers.
    began, made, admitted, at = time.monotonic(), 0, 0, cycle(stack.base_urls)
    while time.monotonic() - began < 2:
        made += 1
        admitted += is_admitted(chat(tenant, next(at)))
    took_s = time.monotonic() - began
    assert admitted <= 10 * took_s + 2
    # A busy machine may ask at a lower pace than that, and not evenly.
    assert admitted >= min(made, 10 * took_s) / 2


def test_limits_of_an_endpoint_and_of_a_model_count_every_tenant(
    stack: Stack, admin: Administrator
) -> None:
    first, second = new_tenant(admin), new_tenant(admin)
    model = "mock-tokens-3"
    try:
        in_force(admin, admin("limit", "set", "--model", model, "--requests-per-day", "3"))
        turns = list(product((first, second), stack.base_urls))
        asked = [chat(tenant, url, model=model) for tenant, url in turns]
        assert [each.status_code for each in asked] == [200, 200, 200, 429]
        details = asked[-1].json()["error"]["details"]
        assert details["layer"] == "model_requests_per_day"
        # It counts everybody: its figures are shown to nobody.
        assert "limit" not in details
        assert is_admitted(chat(first, stack.base_urls[0], model="mock-tokens-4"))

        # And only those that were admitted: three by it, one of another model.
        eventually(lambda: len(first.rows()) + len(second.rows()) >= 4)
        assert len(first.rows()) + len(second.rows()) == 4
        in_force(
            admin, admin("limit", "set", "--endpoint", "messages", "--requests-per-minute", "2")
        )
        asked = [chat(tenant, url, path="/v1/messages") for tenant, url in turns]
        assert [each.status_code for each in asked] == [200, 200, 429, 429]
        assert is_admitted(chat(second, stack.base_urls[0]))
    finally:
        admin("limit", "delete", "--model", model)
        admin("limit", "delete", "--endpoint", "messages")


def in_force(admin: Administrator, receipt: dict[str, Any]) -> None:
    """Wait until every replica has applied a change."""

    def have_all() -> bool:
        return all(node["revision"] >= receipt["revision"] for node in admin("node", "list"))

    eventually(have_all, PROPAGATION_S)


def test_a_shadow_limit_counts_and_never_refuses(stack: Stack, admin: Administrator) -> None:
    tenant = new_tenant(admin)
    shadow = ("--requests-per-day", "1", "--daily-budget-usd", "0.1", "--shadow")
    admin("limit", "set", "--key", tenant.key, *shadow)
    layers = ("key_requests_per_day", "key_spend_per_day")
    for base_url in stack.base_urls:
        eventually(lambda url=base_url: set(layers) <= tenant.quota(url).keys(), PROPAGATION_S)  # type: ignore[misc] # mypy cannot infer a default
        for _ in range(2):
            assert is_admitted(chat(tenant, base_url))

    quota: dict[str, dict[str, Any]] = tenant.quota(stack.base_urls[0])
    assert [(quota[each]["shadow"], quota[each]["used"]) for each in layers] == [
        (True, 4),
        (True, 0.4),
    ]


def test_an_organization_and_the_service_are_paused_and_resumed_on_both_replicas(
    stack: Stack, admin: Administrator
) -> None:
    tenant, other = new_tenant(admin), new_tenant(admin)

    def is_paused(answer: httpx.Response) -> bool:
        return bool(answer.headers.get("x-tollkeeper-error") == "organization_paused")

    admin("org", "update", tenant.organization, "--paused")
    everywhere(tenant, is_paused)
    assert chat(tenant, stack.base_urls[0]).status_code == 403
    assert is_admitted(chat(other, stack.base_urls[0]))
    admin("org", "update", tenant.organization, "--not-paused")
    everywhere(tenant, is_admitted)

    admin("service", "pause")
    try:
        everywhere(tenant, is_paused)
        everywhere(other, is_paused)
        assert "service" in chat(other, stack.base_urls[1]).json()["error"]["message"]
    finally:
        admin("service", "resume")
    everywhere(tenant, is_admitted)
    everywhere(other, is_admitted)
