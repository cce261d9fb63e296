"""The life of a device, as a table, and how many may wait for approval.

    pending_approval ──approve──▶ approved ──suspend──▶ suspended
           │ reject                  ▲  ▲ └──────resume──────┘
           ▼                         │  (or by itself, when its time is over)
        rejected ──────approve───────┘

Every one of them can be revoked, for good. A suspension lifts without a change: a device whose suspension is over counts
as approved, whatever is written down.
"""

import unicodedata
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Final

from controlplane.domain.errors import ExhaustedError, InvalidError, PreconditionError

MAX_PENDING: Final = 1_000
"""So many devices wait for approval at most: a list that a person can still go through."""
MAX_PENDING_OF_ADDRESS: Final = 30
"""So many of one address (IPv4) or /64 (IPv6): an office behind one address, and no flood."""
PENDING_LIFETIME: Final = timedelta(days=7)
"""Who was not approved by then is forgotten, and may register again."""
DEFAULT_SUSPENSION: Final = timedelta(hours=24)

# Places become free by an administrator's decision; asking every second would not hurry it.
FULL_RETRY_AFTER: Final = timedelta(minutes=10)


class DeviceStatus(IntEnum):
    """Where a device stands; the numbers of the contract."""

    PENDING_APPROVAL = 1
    APPROVED = 2
    REJECTED = 3
    SUSPENDED = 4
    REVOKED = 5


class DeviceAction(StrEnum):
    """What an administrator can do to a device."""

    APPROVE = "approve"
    REJECT = "reject"
    SUSPEND = "suspend"
    RESUME = "resume"
    REVOKE = "revoke"
    ROTATE = "rotate"


class InvalidTransitionError(PreconditionError):
    """An action does not apply to where a device stands."""


_TRANSITIONS: Final = {
    (DeviceStatus.PENDING_APPROVAL, DeviceAction.APPROVE): DeviceStatus.APPROVED,
    (DeviceStatus.PENDING_APPROVAL, DeviceAction.REJECT): DeviceStatus.REJECTED,
    (DeviceStatus.PENDING_APPROVAL, DeviceAction.REVOKE): DeviceStatus.REVOKED,
    (DeviceStatus.APPROVED, DeviceAction.SUSPEND): DeviceStatus.SUSPENDED,
    (DeviceStatus.APPROVED, DeviceAction.ROTATE): DeviceStatus.APPROVED,
    (DeviceStatus.APPROVED, DeviceAction.REVOKE): DeviceStatus.REVOKED,
    (DeviceStatus.SUSPENDED, DeviceAction.RESUME): DeviceStatus.APPROVED,
    (DeviceStatus.SUSPENDED, DeviceAction.SUSPEND): DeviceStatus.SUSPENDED,
    (DeviceStatus.SUSPENDED, DeviceAction.ROTATE): DeviceStatus.SUSPENDED,
    (DeviceStatus.SUSPENDED, DeviceAction.REVOKE): DeviceStatus.REVOKED,
    (DeviceStatus.REJECTED, DeviceAction.APPROVE): DeviceStatus.APPROVED,
    (DeviceStatus.REJECTED, DeviceAction.REVOKE): DeviceStatus.REVOKED,
}

_IN_WORDS: Final = {
    DeviceStatus.PENDING_APPROVAL: "a pending",
    DeviceStatus.APPROVED: "an approved",
    DeviceStatus.REJECTED: "a rejected",
    DeviceStatus.SUSPENDED: "a suspended",
    DeviceStatus.REVOKED: "a revoked",
}


def next_status(status: DeviceStatus, action: DeviceAction) -> DeviceStatus:
    """Return where a device stands after `action`.

    Raises:
        InvalidTransitionError: `action` does not apply to `status`.
    """
    try:
        return _TRANSITIONS[status, action]
    except KeyError:
        raise InvalidTransitionError(f"cannot {action} {_IN_WORDS[status]} device") from None


def status_at(
    status: DeviceStatus, suspended_until: datetime | None, now: datetime
) -> DeviceStatus:
    """Return where a device stands at `now`: a suspension is over from its end on.

    Args:
        status: As it was last set.
        suspended_until: The end of the suspension; None for one without an end. Counts for suspended devices only.
        now: An aware instant, as the end is.
    """
    is_suspended = status is DeviceStatus.SUSPENDED
    if is_suspended and suspended_until is not None and suspended_until <= now:
        return DeviceStatus.APPROVED
    return status


def check_room(*, waiting: int, waiting_of_address: int) -> None:
    """Check that one more device may wait for approval.

    Args:
        waiting: How many wait already.
        waiting_of_address: How many of them come from the same address or /64.

    Raises:
        ExhaustedError: There are as many as are allowed.
    """
    if waiting >= MAX_PENDING:
        raise ExhaustedError(
            f"{MAX_PENDING} devices wait for approval", retry_after=FULL_RETRY_AFTER
        )
    if waiting_of_address >= MAX_PENDING_OF_ADDRESS:
        raise ExhaustedError(
            f"{MAX_PENDING_OF_ADDRESS} devices of this address wait for approval",
            retry_after=FULL_RETRY_AFTER,
        )


def check_said(text: str, *, field: str) -> None:
    """Check what a device says of itself: it is shown on administrators' terminals, and anybody may say it.

    Raises:
        InvalidError: It holds a control character.
    """
    if without_controls(text) != text:
        raise InvalidError("control characters are not allowed", field=field)


def without_controls(text: str) -> str:
    """Return what a device's program sends without being asked, such as its User-Agent, as it may be shown."""
    return "".join(each for each in text if unicodedata.category(each) != "Cc")
