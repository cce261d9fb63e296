"""Who calls, by the snapshot alone."""

from collections.abc import Mapping

from dataplane.domain import revocations
from dataplane.domain.credentials import (
    DEVICE_ID_HEADER,
    SESSION_TOKEN_HEADER,
    Credentials,
    sha256_of_token,
    unknown_device,
    unknown_key,
)
from dataplane.domain.instants import instant_text
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import Device, DeviceStatus, Principal
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Snapshot


def authenticate(snapshot: Snapshot, credentials: Credentials, now_ms: int) -> Principal:
    """Return who presents `credentials`: a user, by a key or a device.

    Raises:
        Refusal: INVALID_API_KEY when a key is unknown, revoked or expired, alike for the caller, or
            a device or its token unknown; DEVICE_NOT_APPROVED, DEVICE_SUSPENDED for a device that
            proved its token; USER_SUSPENDED, ORGANIZATION_PAUSED.
    """
    if credentials.device_id:
        principal = _calling_device(snapshot, credentials, now_ms)
    else:
        key = snapshot.keys_by_sha256.get(credentials.sha256)
        if key is None or key.is_revoked:
            raise unknown_key()
        if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
            raise unknown_key()
        principal = key.principal
    user, organization = principal.user, principal.user.organization
    if credentials.organization and credentials.organization != organization.name:
        raise unknown_device() if principal.is_device else unknown_key()
    if snapshot.revoked:
        _refuse_revoked(snapshot, principal)
    if user.is_suspended:
        raise Refusal(Reason.USER_SUSPENDED, "This user is suspended.", details=_support(snapshot))
    if organization.is_paused or snapshot.service.is_paused:
        who = "service" if snapshot.service.is_paused else "organization"
        raise Refusal(
            Reason.ORGANIZATION_PAUSED, f"This {who} is paused.", details=_support(snapshot)
        )
    return principal


def proven_device(snapshot: Snapshot, credentials: Credentials) -> Device | None:
    """Return the device that `credentials` are, wherever it stands in its life."""
    device = snapshot.devices_by_sha256.get(credentials.sha256)
    return device if device is not None and device.device_id == credentials.device_id else None


def presented_device(snapshot: Snapshot, headers: Mapping[str, str]) -> Device | None:
    """Return the device whose session token stands in `headers`, wherever it stands in its life.

    An id that stands beside the token must be its own.
    """
    token = headers.get(SESSION_TOKEN_HEADER, "").strip()
    if not token:
        return None
    device = snapshot.devices_by_sha256.get(sha256_of_token(token))
    if (
        device is None
        or headers.get(DEVICE_ID_HEADER, device.device_id).strip() != device.device_id
    ):
        return None
    return device


def device_status(snapshot: Snapshot, device: Device, now_ms: int) -> DeviceStatus:
    """Return where a device stands, what was revoked ahead of a transfer included."""
    if snapshot.revoked and (SubjectKind.DEVICE.value, device.device_id) in snapshot.revoked:
        return DeviceStatus.REVOKED
    return device.status_at(now_ms)


def is_revoked(revoked: frozenset[tuple[str, str]], principal: Principal) -> bool:
    """Return whether a credential, its user or its organization is among `revoked`."""
    user = principal.user
    return (
        (principal.kind.value, principal.principal_id) in revoked
        or ("user", user.user_id) in revoked
        or ("organization", user.organization.organization_id) in revoked
    )


def revoked_refusal(snapshot: Snapshot, kind: str) -> Refusal:
    """Return how a caller is refused whose key, device, user or organization was revoked."""
    match kind:
        case revocations.USER:
            return Refusal(Reason.USER_SUSPENDED, "This user is suspended.")
        case revocations.ORGANIZATION:
            return Refusal(Reason.ORGANIZATION_PAUSED, "This organization is paused.")
        case revocations.DEVICE:
            return _not_approved(snapshot, DeviceStatus.REVOKED)
        case _:
            return unknown_key()


def _calling_device(snapshot: Snapshot, credentials: Credentials, now_ms: int) -> Principal:
    device = proven_device(snapshot, credentials)
    if device is None:
        raise unknown_device()
    status = device_status(snapshot, device, now_ms)
    if status is DeviceStatus.SUSPENDED:
        raise Refusal(
            Reason.DEVICE_SUSPENDED,
            "This device is suspended.",
            details={**_suspension(device), **_support(snapshot)},
        )
    if status is not DeviceStatus.APPROVED or device.principal is None:
        raise _not_approved(snapshot, status)
    return device.principal


def _not_approved(snapshot: Snapshot, status: DeviceStatus) -> Refusal:
    return Refusal(
        Reason.DEVICE_NOT_APPROVED,
        f"This device may not call: its status is {status.value}.",
        details={"status": status.value, **_support(snapshot)},
    )


def _suspension(device: Device) -> dict[str, object]:
    details: dict[str, object] = {"reason": device.suspension_reason}
    if device.suspended_until_ms is not None:
        details["suspended_until"] = instant_text(device.suspended_until_ms)
    return details


def _refuse_revoked(snapshot: Snapshot, principal: Principal) -> None:
    user, revoked = principal.user, snapshot.revoked
    for kind, subject_id in (
        (principal.kind.value, principal.principal_id),
        (revocations.USER, user.user_id),
        (revocations.ORGANIZATION, user.organization.organization_id),
    ):
        if (kind, subject_id) in revoked:
            raise revoked_refusal(snapshot, kind)


def _support(snapshot: Snapshot) -> dict[str, object]:
    url = snapshot.service.support_url
    return {"support_url": url} if url else {}
