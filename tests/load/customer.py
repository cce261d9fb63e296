"""Whose calls are measured: an organization, a user, a key and a device with every layer, out of reach."""

import time
from collections.abc import Mapping
from typing import Final

import httpx

from tests.load.stack import BenchError, Stack

_ORGANIZATION: Final = "bench"
_USER: Final = "bench/load"
_KEY: Final = "bench/load/generator"
_LAYERS: Final = (
    *("--requests-per-minute", "1000000000"),
    *("--requests-per-day", "100000000000"),
    *("--tokens-per-day", "100000000000000"),
    *("--monthly-budget-usd", "8000000"),
    *("--parallel", "1000000"),
)
_LEDGER_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.5
_CALL_DEADLINE_S: Final = 10.0
_APPROVAL_POLL_S: Final = 0.05


class Customer:
    """The customer of one stack."""

    def __init__(self, stack: Stack) -> None:
        """Create it.

        Raises:
            BenchError: The control plane refused.
        """
        self._stack = stack
        limited = [
            stack.tollkeeper("limit", "set", "--global", *_LAYERS)["limits"],
            self._created("org", _ORGANIZATION, "--org"),
            self._created("user", _USER, "--user"),
        ]
        api_key = stack.tollkeeper("key", "create", _KEY)["api_key"]
        self.by_key: Mapping[str, str] = {"authorization": f"Bearer {api_key}"}
        limited.append(stack.tollkeeper("limit", "set", "--key", _KEY, *_LAYERS)["limits"])
        self.by_device = self._device()
        # And the budget a day of the whole service, which a setting gives it.
        self.layers = sum(map(len, limited)) + 1

    def recorded(self, sent: int) -> float:
        """Wait until the ledger has a row for each of `sent` requests; return for how many seconds.

        Raises:
            BenchError: It does not get there in 120 s, or has more.
        """
        began_at = time.perf_counter()
        while True:
            sums = self._stack.tollkeeper("usage", "--org", _ORGANIZATION)
            rows = sum(each["requests"] for each in sums)
            took_s = time.perf_counter() - began_at
            if rows == sent:
                return took_s
            if rows > sent or took_s > _LEDGER_DEADLINE_S:
                raise BenchError(f"the ledger has {rows:,} rows for {sent:,} requests")
            time.sleep(_POLL_S)

    def _device(self) -> Mapping[str, str]:
        """Register a device, as a client does, and approve it; return its credentials."""
        if self._stack.addresses is None:
            raise BenchError("the stack does not run")
        with httpx.Client(
            base_url=self._stack.addresses.base_url, trust_env=False, timeout=_CALL_DEADLINE_S
        ) as client:
            about = {"deviceName": "bench", "platform": "linux", "version": "1"}
            device = client.post("/v1/devices/register", json=about).raise_for_status().json()
            device_id, token = device["deviceId"], device["sessionToken"]
            self._stack.tollkeeper("device", "approve", device_id, "--user", _USER)
            self._stack.tollkeeper("limit", "set", "--device", device_id, *_LAYERS)
            credentials = {"x-device-id": device_id, "x-session-token": token}
            ends_at = time.monotonic() + _CALL_DEADLINE_S
            while client.get("/v1/models", headers=credentials).status_code != httpx.codes.OK:
                if time.monotonic() > ends_at:
                    raise BenchError("the device may not call")
                time.sleep(_APPROVAL_POLL_S)
        return credentials

    def _created(self, noun: str, name: str, option: str) -> list[object]:
        self._stack.tollkeeper(noun, "create", name)
        limits: list[object] = self._stack.tollkeeper("limit", "set", option, name, *_LAYERS)[
            "limits"
        ]
        return limits
