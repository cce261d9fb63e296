"""Who a request acts for, and what is decided for everybody."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """One limit as configured; unit and window as in `domain.limiting`, capacity in the unit."""

    unit: str
    window: str
    capacity: int
    is_unlimited: bool = False
    is_hard: bool = True
    is_shadow: bool = False
    reset_generation: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What is decided for the whole service."""

    max_replicas: int = 1
    upgrade_url: str = ""
    support_url: str = ""
    is_paused: bool = False
    default_user_limits: tuple[LimitEntry, ...] = ()
    default_global_limits: tuple[LimitEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Organization:
    """An organization."""

    organization_id: str
    name: str
    time_zone: str = "UTC"
    is_paused: bool = False
    default_output_cap_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class User:
    """A user, with its organization."""

    user_id: str
    name: str
    organization: Organization
    tier: str = ""
    is_suspended: bool = False


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, with its user. `expires_at_ms` is Unix milliseconds."""

    key_id: str
    name: str
    user: User
    router_id: str
    allowed_models: tuple[str, ...] = ()
    expires_at_ms: int | None = None
    is_revoked: bool = False
