"""After a restart: what the former process left reserved is settled from its own records."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, Self

import structlog

from dataplane.domain.calls import UsageEvent, UsageState
from dataplane.domain.limiting import LimitsUnavailable

_log = structlog.get_logger(__name__)
_RETRY_SECONDS: Final = 1.0


class Limiter(Protocol):
    """What the former process counted with."""

    async def forfeit(
        self, request_id: str, charged_nanousd: int | None, *, organization_id: str
    ) -> bool:
        """Charge a reservation of a process that died; return whether there was one."""

    async def settle_again(
        self, request_id: str, tokens: int, cost_nanousd: int, *, organization_id: str
    ) -> bool:
        """Settle a request from its record; return whether there was a reservation."""

    async def release_again(self, request_id: str, *, organization_id: str) -> bool:
        """Give back what a request reserved; return whether there was a reservation."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A request of a former process whose settlement may not have reached Redis."""

    request_id: str
    tokens: int
    charged_nanousd: int
    state: UsageState
    organization_id: str = ""

    @classmethod
    def of(cls, event: UsageEvent) -> Self:
        """Return what is left to settle of a request."""
        return cls(
            event.request_id,
            event.usage.total_tokens,
            event.charged_nanousd,
            event.state,
            event.organization_id,
        )


async def settle_leftovers(limiter: Limiter, leftovers: Iterable[Leftover]) -> None:
    """Settle requests of a former process at what their records charge, or give them back.

    Idempotent: what was settled before stays as it is. It goes on until Redis has answered for
    each of them; counters that are cold answer nothing before they are rebuilt.
    """
    found = 0
    for leftover in leftovers:
        found += await _until_answered(limiter, leftover)
    if found:
        _log.info("reservations_recovered", count=found)


async def _until_answered(limiter: Limiter, leftover: Leftover) -> bool:
    while True:
        try:
            return await _settle(limiter, leftover)
        except LimitsUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)


async def _settle(limiter: Limiter, it: Leftover) -> bool:
    whose = it.organization_id
    match it.state:
        case UsageState.ABANDONED:
            return await limiter.forfeit(it.request_id, it.charged_nanousd, organization_id=whose)
        case UsageState.RELEASED:
            # A settlement of nothing would leave it counted as a request.
            return await limiter.release_again(it.request_id, organization_id=whose)
        case _:
            return await limiter.settle_again(
                it.request_id, it.tokens, it.charged_nanousd, organization_id=whose
            )
