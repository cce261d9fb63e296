"""Every refusal that a caller of the data plane can meet."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from dataplane.domain.limiting import Standing


class Reason(StrEnum):
    """The closed set of `common/v1/errors.proto`, in the form that callers see."""

    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    REQUEST_TOO_LARGE_FOR_LIMIT = "request_too_large_for_limit"
    MODEL_NOT_PRICED = "model_not_priced"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    DUPLICATE_CREDENTIALS = "duplicate_credentials"
    INVALID_API_KEY = "invalid_api_key"
    MISSING_CREDENTIALS = "missing_credentials"
    DEVICE_NOT_APPROVED = "device_not_approved"
    DEVICE_SUSPENDED = "device_suspended"
    USER_SUSPENDED = "user_suspended"
    ORGANIZATION_PAUSED = "organization_paused"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    IP_NOT_ALLOWED = "ip_not_allowed"
    NO_ROUTE = "no_route"
    PERMISSION_DENIED = "permission_denied"
    CONFLICT = "conflict"
    DEVICE_ALREADY_REGISTERED = "device_already_registered"
    STILL_REFERENCED = "still_referenced"
    SCHEMA_MISMATCH = "schema_mismatch"
    INTERNAL = "internal"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    TOO_MANY_PARALLEL_REQUESTS = "too_many_parallel_requests"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_INVALID_RESPONSE = "upstream_invalid_response"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    BUDGET_PAUSED = "budget_paused"
    LIMITS_UNAVAILABLE = "limits_unavailable"
    CONFIGURATION_UNAVAILABLE = "configuration_unavailable"
    CONTROL_PLANE_UNAVAILABLE = "control_plane_unavailable"
    PROVIDER_QUOTA_EXHAUSTED = "provider_quota_exhausted"
    OVERLOADED = "overloaded"
    USAGE_BACKLOG = "usage_backlog"
    DRAINING = "draining"


NO_DETAILS: Final[Mapping[str, object]] = {}


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error of ours
    """A request is not served, for a reason that the caller may know.

    `message` and `details` are written for the caller: they never hold a secret, a prompt or
    an exception's text. The cause stays in `__cause__` and in the log.

    Attributes:
        reason: Which of the closed set.
        message: One sentence for the caller.
        param: The request field that is to blame, if one is.
        details: Extras for `error.details`: layer, limit, resets_at …
        retry_after_seconds: When another try makes sense; None when waiting does not help.
        is_final: Whether only a person can change that another try is refused, whatever the reason.
        standings: Where the caller's limits stand, as far as they were asked.
        is_degraded: Whether that is within emergency limits, without the counters.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        param: str | None = None,
        details: Mapping[str, object] = NO_DETAILS,
        retry_after_seconds: int | None = None,
        is_final: bool = False,
        standings: Sequence[Standing] = (),
        is_degraded: bool = False,
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.message = message
        self.param = param
        self.details = details
        self.retry_after_seconds = retry_after_seconds
        self.is_final = is_final
        self.standings = standings
        self.is_degraded = is_degraded
