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


@dataclass(frozen=True, slots=True)
class Leftover:
    """A request of a former process whose settlement may not have reached Redis."""

    request_id: str
    tokens: int
    charged_nanousd: int
    is_abandoned: bool
    organization_id: str = ""

    @classmethod
    def of(cls, event: UsageEvent) -> Self:
        """Return what is left to settle of a request."""
        return cls(
            event.request_id,
            event.usage.total_tokens,
            event.charged_nanousd,
            event.state is UsageState.ABANDONED,
            event.organization_id,
        )


async def settle_leftovers(limiter: Limiter, leftovers: Iterable[Leftover]) -> None:
    """Settle requests of a former process at what their records charge.

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
            if leftover.is_abandoned:
                return await limiter.forfeit(
                    leftover.request_id,
                    leftover.charged_nanousd,
                    organization_id=leftover.organization_id,
                )
            return await limiter.settle_again(
                leftover.request_id,
                leftover.tokens,
                leftover.charged_nanousd,
                organization_id=leftover.organization_id,
            )
        except LimitsUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)
