"""Tiers: sets of layers that users, devices and keys have by name, and those that are there from the beginning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.domain.errors import InvalidError, PreconditionError
from controlplane.domain.limits import Limit, LimitUnit, LimitWindow, check_limits

LAYERS: Final = ("device_limits", "ip_limits", "user_limits", "credential_limits")
"""The lists of limits that a tier has: of each device, address, user and credential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A tier; what has no limit of a unit and window is not limited by it."""

    name: str
    device_limits: tuple[Limit, ...] = ()
    ip_limits: tuple[Limit, ...] = ()
    user_limits: tuple[Limit, ...] = ()
    credential_limits: tuple[Limit, ...] = ()


def _daily(requests: int) -> tuple[Limit, ...]:
    return (Limit(unit=LimitUnit.REQUESTS, window=LimitWindow.DAY, capacity=requests),)


def _a_minute(requests: int) -> tuple[Limit, ...]:
    return (Limit(unit=LimitUnit.REQUESTS, window=LimitWindow.MINUTE, capacity=requests),)


SEEDS: Final = (
    Tier(
        name="free",
        device_limits=_daily(100),
        ip_limits=_daily(500),
        user_limits=_daily(1_000),
        credential_limits=_a_minute(5),
    ),
    Tier(
        name="paid",
        device_limits=_daily(10_000),
        ip_limits=_daily(50_000),
        user_limits=_daily(100_000),
        credential_limits=_a_minute(100),
    ),
)
"""What tiers hold until an administrator changes them."""

RESERVED: Final = "none"
"""What people say for having no tier."""

BUILT_IN: Final = frozenset(tier.name for tier in SEEDS)
"""Tiers that cannot be deleted: a control plane that starts would bring them back."""


def check_layers(layers: Mapping[str, Sequence[Limit]], *, field: str) -> None:
    """Check the lists of a tier, by their names.

    Raises:
        InvalidError: Names the field below `field` that is wrong: `tier.ip_limits[2].window`.
    """
    for name, limits in layers.items():
        check_limits(limits, field=f"{field}.{name}")


def check_name(name: str) -> None:
    """Check that a new tier may be called so.

    Raises:
        InvalidError: It is the word for having none.
    """
    if name == RESERVED:
        raise InvalidError(f"no tier can be called {RESERVED}", field="tier.name")


def check_deletable(name: str) -> None:
    """Check that a tier may be deleted at all.

    Raises:
        PreconditionError: It is there from the beginning.
    """
    if name in BUILT_IN:
        raise PreconditionError(f"tier {name} is built in and cannot be deleted", field="name")
