"""Usage events that tests write, and a wait for what others do."""

import asyncio
import itertools
from collections.abc import Callable

from dataplane.domain.calls import Dialect, TriedLayers, Usage, UsageEvent, UsageSource, UsageState
from dataplane.domain.request_ids import request_id

_numbers = itertools.count()


def usage_event(state: UsageState = UsageState.SETTLED, request: str = "") -> UsageEvent:
    """Return an event whose fields all differ."""
    number = next(_numbers)
    return UsageEvent(
        request_id=request or request_id(1_792_000_000_000, number.to_bytes(10, "big")),
        client_request_id=f"client-{number}",
        node_id="node-that-served",
        state=state,
        http_status=207,
        error_code="provider_failed",
        organization_id="organization1",
        organization="Organization",
        user_id="user12345678",
        user="User",
        key_id="key123456789",
        key="Key",
        tier="tier",
        ip="127.0.0.9",
        router="router",
        rule_id="rule12345678",
        provider="provider",
        requested_model="requested",
        model="model",
        endpoint="chat",
        stream=True,
        dialect=Dialect.ANTHROPIC,
        usage=Usage(101, 102, 103, 104, 105, 106, 107, UsageSource.PARTIAL),
        cost_nanousd=108,
        charged_nanousd=109,
        reserved_nanousd=110,
        reserved_tokens=111,
        price_id="price1234567",
        price_revision=112,
        usage_day="20261121",
        usage_month="202611",
        service_day="20261120",
        config_revision=113,
        attempts=2,
        started_at_ms=1_792_000_000_123,
        duration_ms=114,
        first_content_ms=115,
        generations=(("user_requests_per_day", 3),),
        address_subjects=("127.0.0.9", "127.0.0.0/24"),
        layers=TriedLayers(
            names=("user_requests_per_day", "organization_spend_per_month"),
            capacities=(116, 119),
            reserved=(117, 120),
            remaining=(118, 121),
            shadows=(0,),
            softs=(1,),
        ),
        is_degraded=True,
        output_cap_tokens=122,
        rates=(123, 124, 125, 126, 127, 128),
    )


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition that others bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
