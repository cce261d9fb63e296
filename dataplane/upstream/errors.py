"""What a provider's error means for the caller; see the table of `docs/errors.md`.

Errors about the gateway's own account (its key, its credit) are never shown as the caller's: the
caller would think that its own key is wrong, and the text may hold parts of ours.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from dataplane.domain.refusals import Reason, Refusal

_OBJECT = msgspec.json.Decoder(dict[str, object])
_MAX_RETRY_AFTER_SECONDS: Final = 3600
_QUOTA_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


def refusal_for(status: int, headers: Mapping[str, str], body: bytes) -> Refusal | None:
    """Return what the caller gets for an upstream error; None: the caller gets it as it is.

    Args:
        status: The provider's HTTP status, 400 and above.
        headers: Its headers, names in lower case.
        body: Its body, as far as it was read.
    """
    error = _error_in(body)
    if _is_exhausted(status, error):
        return Refusal(
            Reason.PROVIDER_QUOTA_EXHAUSTED,
            "The account at the provider is exhausted.",
            retry_after_seconds=60,
        )
    if status in (401, 403) or _is_bad_google_key(error):
        return Refusal(Reason.UPSTREAM_AUTH, "The provider refused the gateway's credential.")
    if status in (400, 422):
        if error is not None:
            return None
        return Refusal(Reason.INVALID_REQUEST, "The provider finds this request not valid.")
    if status == 404:
        return Refusal(
            Reason.MODEL_NOT_FOUND, "The provider does not know this model.", param="model"
        )
    if status == 413:
        return Refusal(Reason.REQUEST_TOO_LARGE, "The provider finds this request too large.")
    if status == 429:
        return Refusal(
            Reason.RATE_LIMIT_EXCEEDED,
            "The provider is receiving too many requests.",
            details={"layer": "provider"},
            retry_after_seconds=retry_after_seconds(headers),
        )
    if status in (408, 504):
        return Refusal(Reason.UPSTREAM_TIMEOUT, "The provider did not answer in time.")
    if status in (503, 529):
        return Refusal(
            Reason.OVERLOADED,
            "The provider is overloaded.",
            retry_after_seconds=retry_after_seconds(headers),
        )
    return Refusal(Reason.UPSTREAM_ERROR, f"The provider failed with status {status}.")


def retry_after_seconds(headers: Mapping[str, str]) -> int:
    """Return the provider's wait hint in whole seconds, rounded up; 1 when it gives none."""
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name, "")
        if text.isascii() and text.isdigit():
            seconds = -(-int(text[:12]) // per_second)
            return max(1, min(seconds, _MAX_RETRY_AFTER_SECONDS))
    return 1


def _error_in(body: bytes) -> Mapping[str, object] | None:
    try:
        parsed = _OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    error = parsed.get("error", parsed)
    return error if isinstance(error, dict) else parsed


def _is_exhausted(status: int, error: Mapping[str, object] | None) -> bool:
    if error is None:
        return False
    is_openai = status == 429 and error.get("code") in _QUOTA_CODES
    is_anthropic = status == 400 and "credit balance is too low" in str(error.get("message"))
    return is_openai or is_anthropic


def _is_bad_google_key(error: Mapping[str, object] | None) -> bool:
    details = error.get("details") if error else None
    return isinstance(details, list) and any(
        isinstance(each, dict) and each.get("reason") == "API_KEY_INVALID" for each in details
    )
