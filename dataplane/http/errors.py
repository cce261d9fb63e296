"""From a refusal to an HTTP answer, in the dialect of the API that the caller used."""

from types import ModuleType
from typing import Final

from dataplane.domain.calls import Dialect
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.codecs import anthropic, openai
from dataplane.http.exchange import JSON_TYPE, HttpAnswer

STATUS: Final[dict[Reason, int]] = {
    Reason.INVALID_REQUEST: 400,
    Reason.UNSUPPORTED_PARAMETER: 400,
    Reason.REQUEST_TOO_LARGE_FOR_LIMIT: 400,
    Reason.MODEL_NOT_PRICED: 400,
    Reason.CONTEXT_LENGTH_EXCEEDED: 400,
    Reason.DUPLICATE_CREDENTIALS: 400,
    Reason.INVALID_API_KEY: 401,
    Reason.MISSING_CREDENTIALS: 401,
    Reason.DEVICE_NOT_APPROVED: 403,
    Reason.DEVICE_SUSPENDED: 403,
    Reason.USER_SUSPENDED: 403,
    Reason.ORGANIZATION_PAUSED: 403,
    Reason.MODEL_NOT_ALLOWED: 403,
    Reason.IP_NOT_ALLOWED: 403,
    Reason.NO_ROUTE: 403,
    Reason.PERMISSION_DENIED: 403,
    Reason.CONFLICT: 409,
    Reason.DEVICE_ALREADY_REGISTERED: 409,
    Reason.STILL_REFERENCED: 409,
    Reason.SCHEMA_MISMATCH: 422,
    Reason.INTERNAL: 500,
    Reason.MODEL_NOT_FOUND: 404,
    Reason.NOT_FOUND: 404,
    Reason.METHOD_NOT_ALLOWED: 405,
    Reason.REQUEST_TOO_LARGE: 413,
    Reason.UNSUPPORTED_MEDIA_TYPE: 415,
    Reason.RATE_LIMIT_EXCEEDED: 429,
    Reason.TOO_MANY_PARALLEL_REQUESTS: 429,
    Reason.INSUFFICIENT_QUOTA: 429,
    Reason.UPSTREAM_ERROR: 502,
    Reason.UPSTREAM_AUTH: 502,
    Reason.UPSTREAM_INVALID_RESPONSE: 502,
    Reason.UPSTREAM_TIMEOUT: 504,
    Reason.BUDGET_PAUSED: 503,
    Reason.LIMITS_UNAVAILABLE: 503,
    Reason.CONFIGURATION_UNAVAILABLE: 503,
    Reason.CONTROL_PLANE_UNAVAILABLE: 503,
    Reason.PROVIDER_QUOTA_EXHAUSTED: 503,
    Reason.OVERLOADED: 503,
    Reason.USAGE_BACKLOG: 503,
    Reason.DRAINING: 503,
}
# Asking again soon changes nothing: SDKs that know the header do not.
_POINTLESS: Final = frozenset(
    {
        Reason.INSUFFICIENT_QUOTA,
        Reason.BUDGET_PAUSED,
        Reason.REQUEST_TOO_LARGE_FOR_LIMIT,
        Reason.PROVIDER_QUOTA_EXHAUSTED,
    }
)
_WAITING: Final = frozenset({429, 503})
# A 429 or 503 always says when: this where nothing better is known.
_DEFAULT_RETRY_SECONDS: Final = 5
_CODECS: Final[dict[Dialect, ModuleType]] = {Dialect.OPENAI: openai, Dialect.ANTHROPIC: anthropic}


def status_of(reason: Reason, dialect: Dialect) -> int:
    """Return the HTTP status of a refusal for `reason` in `dialect`."""
    status: int = _CODECS[dialect].refusal_status(reason, STATUS[reason])
    return status


def refused(
    refusal: Refusal,
    dialect: Dialect,
    request_id: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> HttpAnswer:
    """Return the answer that tells the caller of `refusal`.

    Args:
        refusal: Why.
        dialect: Whose error body the caller reads.
        request_id: The gateway's id, empty when the request got none.
        headers: What else the answer carries: limits.
    """
    status = status_of(refusal.reason, dialect)
    body: bytes = _CODECS[dialect].refusal_body(refusal, status, request_id)
    own = [
        ("content-type", JSON_TYPE),
        ("x-tollkeeper-error", refusal.reason.value),
    ]
    if request_id:
        own += [("x-request-id", request_id), ("request-id", request_id)]
    if STATUS[refusal.reason] in _WAITING:
        seconds = refusal.retry_after_seconds
        own.append(("retry-after", str(_DEFAULT_RETRY_SECONDS if seconds is None else seconds)))
    if refusal.is_final or refusal.reason in _POINTLESS:
        own.append(("x-should-retry", "false"))
    return HttpAnswer(status, (*own, *headers), body)


def error_event(refusal: Refusal, dialect: Dialect, request_id: str) -> bytes:
    """Return the event that ends a stream which failed after its 200."""
    status = status_of(refusal.reason, dialect)
    event: bytes = _CODECS[dialect].error_event(refusal, status, request_id)
    return event
