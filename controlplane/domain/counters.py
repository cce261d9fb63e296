"""Counters of calendar periods by name, as the data planes and the ledger both know them.

A period is `20261121` (a day), `202611` (a month) or `total`. Days and months are those of the organization's time zone, and
of UTC for what belongs to no organization: the service, addresses, endpoint classes and models.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from controlplane.domain.limits import LimitUnit, LimitWindow
from controlplane.domain.names import SubjectKind

TOTAL_PERIOD: Final = "total"
SERVICE_TIME_ZONE: Final = "UTC"

UNITS: Final = (LimitUnit.REQUESTS, LimitUnit.TOKENS, LimitUnit.SPEND)
"""What is counted over calendar periods."""

WINDOWS: Final = (LimitWindow.DAY, LimitWindow.MONTH, LimitWindow.TOTAL)
"""The calendar periods."""

_DAY: Final = re.compile(r"\d{8}", re.ASCII)
_MONTH: Final = re.compile(r"\d{6}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of one subject in one period; `subject_id` is empty for the service-wide subject."""

    subject_kind: SubjectKind
    subject_id: str
    unit: LimitUnit
    period_id: str
    reset_generation: int = 0


def window_of(period_id: str) -> LimitWindow | None:
    """Return of which window a period is; None when it is none."""
    if period_id == TOTAL_PERIOD:
        return LimitWindow.TOTAL
    if _DAY.fullmatch(period_id):
        return LimitWindow.DAY
    return LimitWindow.MONTH if _MONTH.fullmatch(period_id) else None


def period_at(window: LimitWindow, time_zone: str, now: datetime) -> str:
    """Return the period that runs at `now` in a time zone, an IANA name; empty reads as UTC.

    Raises:
        ValueError: The window has no periods.
        zoneinfo.ZoneInfoNotFoundError: There is no such zone.
    """
    if window is LimitWindow.TOTAL:
        return TOTAL_PERIOD
    local = now.astimezone(ZoneInfo(time_zone or SERVICE_TIME_ZONE))
    match window:
        case LimitWindow.DAY:
            return f"{local:%Y%m%d}"
        case LimitWindow.MONTH:
            return f"{local:%Y%m}"
        case _:
            raise ValueError(f"{window.name} is not a calendar period")


def layer_name(kind: SubjectKind, unit: LimitUnit, window: LimitWindow) -> str:
    """Return the public name of a layer: `user_requests_per_day`, `key_spend_total`."""
    joint = "_" if window is LimitWindow.TOTAL else "_per_"
    return f"{kind.name}_{unit.name}{joint}{window.name}".lower()


def address_subject_id(prefix: str) -> str:
    """Return the id under which an address itself is counted: the data planes' digest of it.

    Args:
        prefix: An IPv4 address, or the /64 of an IPv6 one, as text.
    """
    return hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()
