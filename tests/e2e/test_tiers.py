"""The free tier's layers bind exactly at their numbers, over both replicas.

What takes many calls is tried at a smaller number here, which stands in the place of the tier's own.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

import aiohttp
import httpx
import pytest

from tests.e2e.customers import Customer, new_user
from tests.e2e.devices import BODY, Device, approve, register
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually

# What binds before the layers that a device shares with others.
OWN_LAYERS = ("requests-per-minute", "requests-per-day")
_ADDRESSES = (f"198.51.100.{number}" for number in count(1))


def free_device(stack: Stack, http: httpx.Client, user: str, address: str, *without: str) -> Device:
    """Return an approved device of a free user that every replica knows, `without` some of the tier's layers."""
    device = register(stack, http, address)
    if without:
        unlimited = [part for layer in without for part in (f"--{layer}", "none")]
        stack.tollkeeper("limit", "set", "--device", device.device_id, *unlimited)
    approve(stack, http, device, "--user", user)
    return device


async def calls(stack: Stack, devices: Sequence[Device], number: int) -> Counter[tuple[int, str]]:
    """Make `number` calls at once, devices and replicas in turns; return what they met."""
    connector = aiohttp.TCPConnector(limit=100)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call(turn: int) -> tuple[int, str]:
            # Not in step with each other, so that every device meets every replica.
            device = devices[turn % len(devices)]
            base_url = stack.base_urls[turn // len(devices) % len(stack.base_urls)]
            url = f"{base_url}/v1/chat/completions"
            async with session.post(url, json=BODY, headers=device.headers) as answer:
                said: dict[str, Any] = await answer.json()
                layer = said.get("error", {}).get("details", {}).get("layer", "")
                return answer.status, layer

        return Counter(await asyncio.gather(*(call(turn) for turn in range(number))))


def figures(stack: Stack, http: httpx.Client, device: Device, figure: str) -> dict[str, int]:
    """Return a figure of each layer that the device may see: its `limit`, or what it has `used`."""
    answer = http.get(f"{stack.base_urls[0]}/v1/llm/quota", headers=device.headers)
    assert answer.status_code == 200, answer.text
    return {each["layer"]: each[figure] for each in answer.json()["limits"]}


async def test_the_burst_and_the_day_of_a_free_device_bind_exactly(
    stack: Stack, http: httpx.Client
) -> None:
    user, address = new_user(stack, "--tier", "free")["name"], next(_ADDRESSES)
    bursting = free_device(stack, http, user, address)
    steady = free_device(stack, http, user, address, "requests-per-minute")

    assert await calls(stack, [bursting], 20) == {
        (200, ""): 5,
        (429, "device_requests_per_minute"): 15,
    }
    assert await calls(stack, [steady], 130) == {
        (200, ""): 100,
        (429, "device_requests_per_day"): 30,
    }

    before = figures(stack, http, steady, "used")
    assert await calls(stack, [steady], 10) == {(429, "device_requests_per_day"): 10}
    assert figures(stack, http, steady, "used") == before
    assert before == {
        "device_requests_per_day": 100,
        "ip_requests_per_day": 105,
        "user_requests_per_day": 105,
    }


@pytest.mark.parametrize("most", [100, pytest.param(500, marks=pytest.mark.long)])
async def test_an_address_of_the_free_tier_binds_exactly(
    stack: Stack, http: httpx.Client, most: int
) -> None:
    address = next(_ADDRESSES)
    users = [new_user(stack, "--tier", "free")["name"] for _ in range(2)]
    first = free_device(stack, http, users[0], address, *OWN_LAYERS)
    assert figures(stack, http, first, "limit")["ip_requests_per_day"] == 500
    if most != 500:
        stack.tollkeeper("limit", "set", "--ip", address, "--requests-per-day", str(most))
    devices = [first, free_device(stack, http, users[1], address, *OWN_LAYERS)]

    seen = await calls(stack, devices, most * 6 // 5)

    assert seen == {(200, ""): most, (429, "ip_requests_per_day"): most // 5}
    assert figures(stack, http, first, "used")["ip_requests_per_day"] == most


@pytest.mark.parametrize("most", [150, pytest.param(1_000, marks=pytest.mark.long)])
async def test_a_user_of_the_free_tier_binds_exactly(
    stack: Stack, http: httpx.Client, most: int
) -> None:
    user = new_user(stack, "--tier", "free")["name"]
    first = free_device(stack, http, user, next(_ADDRESSES), *OWN_LAYERS)
    assert figures(stack, http, first, "limit")["user_requests_per_day"] == 1_000
    if most != 1_000:
        stack.tollkeeper("limit", "set", "--user", user, "--requests-per-day", str(most))
    more = [free_device(stack, http, user, next(_ADDRESSES), *OWN_LAYERS) for _ in range(2)]

    seen = await calls(stack, [first, *more], most * 11 // 10)

    assert seen == {(200, ""): most, (429, "user_requests_per_day"): most // 10}


async def test_a_limit_of_an_address_counts_everybody_there_and_tells_no_figures(
    stack: Stack, http: httpx.Client, customer: Customer
) -> None:
    address = next(_ADDRESSES)
    stack.tollkeeper("limit", "set", "--ip", address, "--requests-per-day", "4")
    device = register(stack, http, address)
    approve(stack, http, device, "--user", customer.user)

    def ask(base_url: str, at: str = address) -> httpx.Response:
        headers = {"authorization": f"Bearer {customer.api_key}", "x-forwarded-for": at}
        return http.post(f"{base_url}/v1/chat/completions", json=BODY, headers=headers)

    first, second = stack.base_urls
    assert [ask(each).status_code for each in (first, second)] == [200, 200]
    assert [device.call(http, each).status_code for each in (first, second)] == [200, 200]
    refused, of_device = ask(first), device.call(http, second)

    details = refused.json()["error"]["details"]
    assert (refused.status_code, details["layer"]) == (429, "ip_requests_per_day")
    # Others call from there too: how many is not a key's business, while a device is at home there.
    assert "limit" not in details
    assert of_device.json()["error"]["details"]["limit"] == 4
    assert ask(first, next(_ADDRESSES)).status_code == 200


async def test_a_tier_changes_while_everything_runs(stack: Stack, http: httpx.Client) -> None:
    stack.tollkeeper("tier", "create", "trial", "--device-requests-per-day", "2")
    user = new_user(stack)["name"]
    device = register(stack, http)
    approve(stack, http, device, "--user", user, "--tier", "trial")
    assert await calls(stack, [device], 4) == {
        (200, ""): 2,
        (429, "device_requests_per_day"): 2,
    }

    stack.tollkeeper("tier", "update", "trial", "--device-requests-per-day", "3")

    for base_url in stack.base_urls:
        eventually(partial(has_limit, http, f"{base_url}/v1/llm/quota", device, 3), 1.0)
    assert (await calls(stack, [device], 4))[200, ""] == 1


def has_limit(http: httpx.Client, url: str, device: Device, limit: int) -> bool:
    [layer] = http.get(url, headers=device.headers).json()["limits"]
    return bool(layer["limit"] == limit)
