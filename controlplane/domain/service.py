"""What the environment decides for the whole service."""

from dataclasses import dataclass

from controlplane.domain.limits import Limit, LimitUnit, LimitWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDefaults:
    """Settings that the data planes need; None where there is no limit. Money is in nano-USD."""

    max_replicas: int = 1
    daily_budget_nanousd: int | None = None
    daily_requests: int | None = None
    default_daily_requests: int | None = None
    default_daily_tokens: int | None = None
    default_monthly_spend_nanousd: int | None = None
    upgrade_url: str = ""
    support_url: str = ""

    @property
    def global_limits(self) -> tuple[Limit, ...]:
        """Layers of everything that passes the service."""
        return _given(
            (LimitUnit.REQUESTS, LimitWindow.DAY, self.daily_requests),
            (LimitUnit.SPEND, LimitWindow.DAY, self.daily_budget_nanousd),
        )

    @property
    def user_limits(self) -> tuple[Limit, ...]:
        """Layers of a user that has neither a tier nor limits of its own."""
        return _given(
            (LimitUnit.REQUESTS, LimitWindow.DAY, self.default_daily_requests),
            (LimitUnit.TOKENS, LimitWindow.DAY, self.default_daily_tokens),
            (LimitUnit.SPEND, LimitWindow.MONTH, self.default_monthly_spend_nanousd),
        )


def _given(*layers: tuple[LimitUnit, LimitWindow, int | None]) -> tuple[Limit, ...]:
    return tuple(
        Limit(unit=unit, window=window, capacity=capacity)
        for unit, window, capacity in layers
        if capacity is not None
    )
