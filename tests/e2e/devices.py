"""Devices of a stack: registered over HTTP as a client does it, approved by the command line."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx

from tests.e2e.stack import Secret, Stack
from tests.e2e.waiting import eventually

BODY: Final = {
    "model": "mock-echo",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "hello"}],
}


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device; `address` is where a trusted proxy says that it calls from."""

    device_id: str
    token: str
    address: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Return what it sends with each call."""
        own = {"x-device-id": self.device_id, "x-session-token": self.token}
        return {**own, "x-forwarded-for": self.address} if self.address else own

    def call(self, http: httpx.Client, base_url: str) -> httpx.Response:
        """Ask the mock for a short answer."""
        url = f"{base_url}/v1/chat/completions"
        return http.post(url, json=BODY, headers=self.headers)

    def may_call(self, http: httpx.Client, base_url: str) -> bool:
        """Return whether a replica lets it in; nothing is counted."""
        return http.get(f"{base_url}/v1/models", headers=self.headers).status_code == 200


def approve(stack: Stack, http: httpx.Client, device: Device, *given: str) -> None:
    """Approve a device, and wait until every replica knows."""
    stack.tollkeeper("device", "approve", device.device_id, *given)
    for base_url in stack.base_urls:
        eventually(partial(device.may_call, http, base_url))


def register(stack: Stack, http: httpx.Client, address: str = "", replica: int = 0) -> Device:
    """Register a device, which then waits for its approval."""
    answer = http.post(
        f"{stack.base_urls[replica]}/v1/devices/register",
        json={"deviceName": "phone", "platform": "linux", "version": "1.0"},
        headers={"x-forwarded-for": address} if address else {},
    )
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert made["status"] == "pending_approval"
    device = Device(made["deviceId"], made["sessionToken"], address)
    stack.secrets.append(Secret(f"the session token of {device.device_id}", device.token))
    return device
