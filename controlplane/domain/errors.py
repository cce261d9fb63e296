"""Everything that can be wrong with a change, each with a reason of the closed set."""

from collections.abc import Sequence
from datetime import timedelta
from enum import IntEnum


class ErrorReason(IntEnum):
    """Every machine-readable refusal of both planes: `ErrorReason` of the contract, number by number."""

    UNSPECIFIED = 0
    INVALID_REQUEST = 1
    UNSUPPORTED_PARAMETER = 2
    REQUEST_TOO_LARGE_FOR_LIMIT = 3
    MODEL_NOT_PRICED = 4
    CONTEXT_LENGTH_EXCEEDED = 5
    DUPLICATE_CREDENTIALS = 6
    INVALID_API_KEY = 10
    MISSING_CREDENTIALS = 11
    DEVICE_NOT_APPROVED = 20
    DEVICE_SUSPENDED = 21
    USER_SUSPENDED = 22
    ORGANIZATION_PAUSED = 23
    MODEL_NOT_ALLOWED = 24
    IP_NOT_ALLOWED = 25
    NO_ROUTE = 26
    PERMISSION_DENIED = 27
    CONFLICT = 30
    DEVICE_ALREADY_REGISTERED = 31
    STILL_REFERENCED = 32
    SCHEMA_MISMATCH = 40
    INTERNAL = 50
    MODEL_NOT_FOUND = 60
    NOT_FOUND = 61
    METHOD_NOT_ALLOWED = 62
    REQUEST_TOO_LARGE = 63
    UNSUPPORTED_MEDIA_TYPE = 64
    RATE_LIMIT_EXCEEDED = 70
    TOO_MANY_PARALLEL_REQUESTS = 71
    INSUFFICIENT_QUOTA = 72
    UPSTREAM_ERROR = 80
    UPSTREAM_AUTH = 81
    UPSTREAM_INVALID_RESPONSE = 82
    UPSTREAM_TIMEOUT = 83
    BUDGET_PAUSED = 90
    LIMITS_UNAVAILABLE = 91
    CONFIGURATION_UNAVAILABLE = 92
    CONTROL_PLANE_UNAVAILABLE = 93
    PROVIDER_QUOTA_EXHAUSTED = 94
    OVERLOADED = 95
    USAGE_BACKLOG = 96
    DRAINING = 97


class DomainError(Exception):
    """A refusal that a caller may see: `detail` holds no secret, `field` names what is wrong, if one thing is."""

    reason = ErrorReason.INTERNAL

    def __init__(self, detail: str, *, field: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class InvalidError(DomainError):
    """A field holds what it cannot hold, whatever else is configured."""

    reason = ErrorReason.INVALID_REQUEST


class PreconditionError(DomainError):
    """The request is well-formed, and what is configured does not allow it."""

    reason = ErrorReason.INVALID_REQUEST


class NotFoundError(DomainError):
    """What the request names does not exist."""

    reason = ErrorReason.NOT_FOUND


class AlreadyExistsError(DomainError):
    """The name is taken."""

    reason = ErrorReason.CONFLICT


class StaleError(DomainError):
    """The caller saw an older state, or somebody else changed the same thing at the same time."""

    reason = ErrorReason.CONFLICT


class StillReferencedError(DomainError):
    """Others refer to what was to be deleted; `referrers` names them as people do: `user acme/alice`."""

    reason = ErrorReason.STILL_REFERENCED

    # The list travels in a header, which has a bound of a few KiB.
    MAX_NAMED = 20

    def __init__(self, what: str, referrers: Sequence[str]) -> None:
        self.referrers = tuple(referrers)
        named = ", ".join(self.referrers[: self.MAX_NAMED])
        more = len(self.referrers) - self.MAX_NAMED
        rest = f" and {more} more" if more > 0 else ""
        super().__init__(f"{what} is still referred to by {named}{rest}")


class UnauthenticatedError(DomainError):
    """The credential is unknown; a caller cannot tell why."""

    reason = ErrorReason.INVALID_API_KEY


class MissingCredentialsError(DomainError):
    """No credential was presented."""

    reason = ErrorReason.MISSING_CREDENTIALS


class PermissionDeniedError(DomainError):
    """The caller is known and may not do this."""

    reason = ErrorReason.PERMISSION_DENIED


class OverloadedError(DomainError):
    """Too many want to write at once, or the database does not answer; trying again later helps."""

    reason = ErrorReason.OVERLOADED


class LimitsUnavailableError(DomainError):
    """The counters cannot be reached from here; trying again later helps."""

    reason = ErrorReason.LIMITS_UNAVAILABLE


class DeadlineError(DomainError):
    """Somebody far away did not answer in time."""

    reason = ErrorReason.UPSTREAM_TIMEOUT


class ExhaustedError(DomainError):
    """There are as many of something as are allowed; trying again before `retry_after` is over does not help."""

    reason = ErrorReason.RATE_LIMIT_EXCEEDED

    def __init__(self, detail: str, *, retry_after: timedelta) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
