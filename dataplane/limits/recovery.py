"""After a restart: what the former process left reserved is settled from its own records."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import structlog

from dataplane.domain.calls import UsageEvent, UsageState
from dataplane.domain.limiting import LimitsUnavailable
from dataplane.limits.limiter import Limiter

_log = structlog.get_logger(__name__)
_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """A request of a former process whose settlement may not have reached Redis."""

    request_id: str
    tokens: int
    charged_nanousd: int
    is_abandoned: bool

    @classmethod
    def of(cls, event: UsageEvent) -> Self:
        """Return what is left to settle of a request."""
        return cls(
            event.request_id,
            event.usage.total_tokens,
            event.charged_nanousd,
            event.state is UsageState.ABANDONED,
        )


async def settle_leftovers(limiter: Limiter, leftovers: Iterable[Leftover]) -> None:
    """Settle requests of a former process: abandoned ones in full, the others at their figure.

    Idempotent: what was settled before stays as it is. It goes on until Redis has answered for
    each of them.
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
                return await limiter.forfeit(leftover.request_id)
            return await limiter.settle_again(
                leftover.request_id, leftover.tokens, leftover.charged_nanousd
            )
        except LimitsUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)
