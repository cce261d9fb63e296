"""Who calls, by the snapshot alone."""

from dataplane.domain.credentials import Credentials, unknown_key
from dataplane.domain.principals import ApiKey
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.snapshot import Snapshot


def authenticate(snapshot: Snapshot, credentials: Credentials, now_ms: int) -> ApiKey:
    """Return the key that `credentials` are, with its user and organization.

    Raises:
        Refusal: INVALID_API_KEY when it is unknown, revoked or expired, alike for the caller;
            USER_SUSPENDED, ORGANIZATION_PAUSED.
    """
    key = snapshot.keys_by_sha256.get(credentials.key_sha256)
    if key is None or key.is_revoked:
        raise unknown_key()
    if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
        raise unknown_key()
    user, organization = key.user, key.user.organization
    if credentials.organization and credentials.organization != organization.name:
        raise unknown_key()
    if snapshot.revoked:
        _refuse_revoked(snapshot.revoked, key)
    if user.is_suspended:
        raise Refusal(Reason.USER_SUSPENDED, "This user is suspended.", details=_support(snapshot))
    if organization.is_paused or snapshot.service.is_paused:
        raise Refusal(
            Reason.ORGANIZATION_PAUSED, "This organization is paused.", details=_support(snapshot)
        )
    return key


def is_revoked(revoked: frozenset[tuple[str, str]], key: ApiKey) -> bool:
    """Return whether `key`, its user or its organization is among `revoked`."""
    user = key.user
    return (
        ("key", key.key_id) in revoked
        or ("user", user.user_id) in revoked
        or ("organization", user.organization.organization_id) in revoked
    )


def _refuse_revoked(revoked: frozenset[tuple[str, str]], key: ApiKey) -> None:
    if ("key", key.key_id) in revoked:
        raise unknown_key()
    if ("user", key.user.user_id) in revoked:
        raise Refusal(Reason.USER_SUSPENDED, "This user is suspended.")
    if ("organization", key.user.organization.organization_id) in revoked:
        raise Refusal(Reason.ORGANIZATION_PAUSED, "This organization is paused.")


def _support(snapshot: Snapshot) -> dict[str, object]:
    url = snapshot.service.support_url
    return {"support_url": url} if url else {}
