"""Keys take effect and are taken out of service on every replica within a second."""

import time

import httpx

from tests.e2e.customers import Customer, new_user
from tests.e2e.stack import Stack

PROPAGATION_S = 1.0
BODY = {"model": "mock-echo", "messages": [{"role": "user", "content": "hello"}]}


def status(http: httpx.Client, base_url: str, api_key: str) -> int:
    response = http.post(
        f"{base_url}/v1/chat/completions",
        json=BODY,
        headers={"authorization": f"Bearer {api_key}"},
    )
    return response.status_code


def is_everywhere(http: httpx.Client, stack: Stack, api_key: str, wanted: int) -> bool:
    """Tell whether all replicas answer with that status within the promised second from now."""
    ends_at = time.monotonic() + PROPAGATION_S
    for base_url in stack.base_urls:
        while status(http, base_url, api_key) != wanted:
            if time.monotonic() > ends_at:
                return False
    return True


def test_a_new_key_works_and_a_revoked_one_is_refused_on_both_replicas_within_a_second(
    stack: Stack, http: httpx.Client
) -> None:
    name = f"{new_user(stack)['name']}/laptop"

    key = stack.tollkeeper("key", "create", name)
    assert is_everywhere(http, stack, key["api_key"], 200)

    receipt = stack.tollkeeper("key", "revoke", name, "--wait", "2s")
    assert is_everywhere(http, stack, key["api_key"], 401)
    assert sorted(each["node"] for each in receipt["applied"]) == ["dev-1", "dev-2"]
    assert all(0 <= each["ms"] < 1_000 for each in receipt["applied"])
    assert receipt["missing"] == []
    assert receipt["revision"] > 0


def test_what_a_receipt_names_is_refused_from_the_moment_of_the_receipt_on(
    stack: Stack, customer: Customer, http: httpx.Client
) -> None:
    assert is_everywhere(http, stack, customer.api_key, 200)

    receipt = stack.tollkeeper("key", "revoke", customer.key, "--wait", "10s")

    assert len(receipt["applied"]) == 2
    # No patience at all: the receipt says that it is so already.
    assert [status(http, base_url, customer.api_key) for base_url in stack.base_urls] == [401, 401]


def test_a_suspended_user_is_refused_until_they_are_activated_again(
    stack: Stack, customer: Customer, http: httpx.Client
) -> None:
    assert is_everywhere(http, stack, customer.api_key, 200)

    stack.tollkeeper("user", "suspend", customer.user)
    assert is_everywhere(http, stack, customer.api_key, 403)

    stack.tollkeeper("user", "activate", customer.user)
    assert is_everywhere(http, stack, customer.api_key, 200)
