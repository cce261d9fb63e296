"""Who a request acts for, and what is decided for everybody.

What there may be a million of is a struct that the garbage collector does not look at: looking through fifty
thousand new ones holds every request up for 20 ms. They refer to nothing that refers to them, so that counting
references frees them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from dataplane.domain.limiting import SubjectKind


class LimitEntry(msgspec.Struct, frozen=True, gc=False):
    """One limit as configured; unit and window as in `domain.limiting`, capacity in the unit.

    `every_ms` and `burst` are those of a rate, as in `Layer`.
    """

    unit: str
    window: str
    capacity: int
    is_unlimited: bool = False
    is_hard: bool = True
    is_shadow: bool = False
    reset_generation: int = 0
    every_ms: int = 0
    burst: int = 0

    @property
    def counted(self) -> tuple[str, str]:
        """What it counts, over which time: a subject has one limit of each."""
        return self.unit, self.window


class TemporaryEntry(msgspec.Struct, frozen=True, gc=False):
    """A limit that takes the place of another until `until_ms`, in Unix milliseconds."""

    entry: LimitEntry
    until_ms: int


class SubjectLimits(msgspec.Struct, frozen=True, gc=False):
    """All that is configured for one subject: of each kind at most one per unit and window.

    Attributes:
        own: Its limits; they take the place of a tier's, or of the service's defaults.
        temporary: What takes the place of any of them until it expires.
        generations: How often its counters were reset, by unit and window, whoever set the limit
            that they count for.
    """

    own: tuple[LimitEntry, ...] = ()
    temporary: tuple[TemporaryEntry, ...] = ()
    generations: Mapping[tuple[str, str], int] = msgspec.field(default_factory=dict)


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
    """An organization.

    `fails_open` says that its calls are admitted within emergency limits while counters cannot be
    read, unless it has a hard budget.
    """

    organization_id: str
    name: str
    time_zone: str = "UTC"
    is_paused: bool = False
    default_output_cap_tokens: int = 4096
    fails_open: bool = False


class User(msgspec.Struct, frozen=True, gc=False):
    """A user, with its organization."""

    user_id: str
    name: str
    organization: Organization
    tier: str = ""
    is_suspended: bool = False


@dataclass(frozen=True, slots=True)
class Tier:
    """A set of layers for the calls of those who have it.

    `credential_limits` are those of each key or device; for a device `device_limits` come first.
    """

    name: str
    device_limits: tuple[LimitEntry, ...] = ()
    ip_limits: tuple[LimitEntry, ...] = ()
    user_limits: tuple[LimitEntry, ...] = ()
    credential_limits: tuple[LimitEntry, ...] = ()


class Principal(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Who a request acts for: a user, by one of their keys or devices.

    Compared by identity: one is made per credential when a snapshot is built, and plans are found
    by it. `kind` is KEY or DEVICE; `tier` is the name that counts: the credential's own, else the
    user's, else empty.
    """

    kind: SubjectKind
    principal_id: str
    name: str
    user: User
    router_id: str
    allowed_models: tuple[str, ...] = ()
    tier: str = ""

    @property
    def is_device(self) -> bool:
        """Return whether a device calls."""
        return self.kind is SubjectKind.DEVICE


class ApiKey(msgspec.Struct, frozen=True, gc=False):
    """A key, and who calls with it. `expires_at_ms` is Unix milliseconds."""

    key_id: str
    principal: Principal
    expires_at_ms: int | None = None
    is_revoked: bool = False


class DeviceStatus(StrEnum):
    """Where a device stands, in the words that callers see; what is not known here denies."""

    UNKNOWN = "unknown"
    PENDING_APPROVAL = "pending_approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


class Device(msgspec.Struct, frozen=True, gc=False):
    """A device, and who calls with it from its approval on. Times are Unix milliseconds."""

    device_id: str
    name: str
    status: DeviceStatus
    principal: Principal | None = None
    suspended_until_ms: int | None = None
    suspension_reason: str = ""

    def status_at(self, now_ms: int) -> DeviceStatus:
        """Return where it stands at `now_ms`: a suspension lifts by itself."""
        if self.status is not DeviceStatus.SUSPENDED:
            return self.status
        until_ms = self.suspended_until_ms
        is_over = until_ms is not None and until_ms <= now_ms
        return DeviceStatus.APPROVED if is_over else DeviceStatus.SUSPENDED
