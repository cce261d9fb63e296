"""What a caller presents: the text form of an API key, or a device's id and token; parsed and hashed.

`ApiKey` in `config/v1/resources.proto` defines the format; the control plane mints it. Both
sides are run against the same vectors.
"""

import hashlib
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dataplane.domain.refusals import Reason, Refusal

BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BASE62: Final = frozenset(BASE62)
_ID_CHARACTERS: Final = frozenset(string.digits + string.ascii_lowercase)
_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_ENVIRONMENTS: Final = ("live", "test")
_BEARER: Final = "bearer "
_KEY_HEADERS: Final = ("x-api-key", "x-goog-api-key", "x-iam-key")
DEVICE_ID_HEADER: Final = "x-device-id"
SESSION_TOKEN_HEADER: Final = "x-session-token"  # noqa: S105 - a header's name, not a secret
_DEVICE_HEADERS: Final = (DEVICE_ID_HEADER, SESSION_TOKEN_HEADER)
_SHOWN: Final = {DEVICE_ID_HEADER: "X-Device-ID", SESSION_TOKEN_HEADER: "X-Session-Token"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A well-formed key or a device's credential, by its digest; the secret itself is not kept.

    `device_id` is empty for a key; with it the digest is that of the session token.
    """

    sha256: bytes
    organization: str = ""
    device_id: str = ""


def parse_credentials(headers: Mapping[str, str], prefix: str = "tk") -> Credentials:
    """Return the one credential in `headers` (names in lower case).

    Raises:
        Refusal: None was presented, two that differ were, or it is not a key.
    """
    presented = _presented(headers)
    if DEVICE_ID_HEADER in headers or SESSION_TOKEN_HEADER in headers:
        # SDKs send an empty key when they are given none.
        if any(presented):
            raise Refusal(Reason.DUPLICATE_CREDENTIALS, "A key and a device were both given.")
        return _device_credentials(headers)
    if not presented:
        raise Refusal(
            Reason.MISSING_CREDENTIALS,
            "No credentials were given: send Authorization: Bearer <key>, x-api-key, or"
            " X-Device-ID with X-Session-Token.",
            details={"headers": ["authorization", *_KEY_HEADERS, *_DEVICE_HEADERS]},
        )
    key = presented[0]
    if any(other != key for other in presented[1:]):
        raise Refusal(Reason.DUPLICATE_CREDENTIALS, "Two credentials that differ were given.")
    if not is_well_formed(key, prefix):
        raise unknown_key()
    return Credentials(hashlib.sha256(key.encode("ascii")).digest(), headers.get("x-iam-org", ""))


def _device_credentials(headers: Mapping[str, str]) -> Credentials:
    missing = [name for name in _DEVICE_HEADERS if not headers.get(name, "").strip()]
    if missing:
        names = " and ".join(_SHOWN[name] for name in missing)
        raise Refusal(
            Reason.MISSING_CREDENTIALS,
            f"A device sends X-Device-ID and X-Session-Token; {names} is missing.",
            details={"headers": missing},
        )
    return Credentials(
        sha256_of_token(headers[SESSION_TOKEN_HEADER]),
        headers.get("x-iam-org", ""),
        headers[DEVICE_ID_HEADER].strip(),
    )


def sha256_of_token(token: str) -> bytes:
    """Return the digest by which a device is found; header values are Latin-1."""
    return hashlib.sha256(token.strip().encode("latin-1")).digest()


def unknown_key() -> Refusal:
    """Return the one answer to keys that are malformed, unknown, revoked or expired."""
    return Refusal(Reason.INVALID_API_KEY, "The API key is not valid.")


def unknown_device() -> Refusal:
    """Return the one answer to devices that are unknown, or whose token is not theirs."""
    return Refusal(Reason.INVALID_API_KEY, "The device or its session token is not valid.")


def is_well_formed(key: str, prefix: str = "tk") -> bool:
    """Return whether `key` has the text form of an API key, its check included."""
    parts = key.split("_")
    if len(parts) != 4 or parts[0] != prefix or parts[1] not in _ENVIRONMENTS:
        return False
    key_id, tail = parts[2], parts[3]
    return (
        len(key_id) == _ID_LENGTH
        and _ID_CHARACTERS.issuperset(key_id)
        and len(tail) == _SECRET_LENGTH + _CHECK_LENGTH
        and _BASE62.issuperset(tail)
        and check_of(key[:-_CHECK_LENGTH]) == tail[_SECRET_LENGTH:]
    )


def check_of(text: str) -> str:
    """Return the 6 characters that close a key whose text so far is `text`."""
    value = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(_CHECK_LENGTH):
        value, digit = divmod(value, len(BASE62))
        digits = BASE62[digit] + digits
    return digits


def _presented(headers: Mapping[str, str]) -> list[str]:
    found = []
    authorization = headers.get("authorization")
    if authorization is not None:
        is_bearer = authorization[: len(_BEARER)].lower() == _BEARER
        found.append(authorization[len(_BEARER) :].strip() if is_bearer else "")
    found.extend(headers[name].strip() for name in _KEY_HEADERS if name in headers)
    return found
