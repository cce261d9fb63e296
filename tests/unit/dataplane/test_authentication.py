import hashlib
from typing import Any

import pytest

from dataplane.domain.authentication import authenticate, is_revoked, presented_device
from dataplane.domain.credentials import Credentials
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import ApiKey, Device, DeviceStatus, Principal, Service
from dataplane.domain.refusals import Reason, Refusal
from tests.unit.dataplane.configuration import (
    api_key,
    device,
    organization,
    principal,
    snapshot,
    user,
)

GOOD = Credentials(b"digest")


def reason(
    key: ApiKey, credentials: Credentials = GOOD, **changes: Any
) -> tuple[Reason, object] | None:
    try:
        assert authenticate(snapshot(key=key, **changes), credentials, now_ms=1000) is key.principal
    except Refusal as refusal:
        return refusal.reason, (refusal.message, dict(refusal.details))
    return None


def test_a_good_key_is_let_in() -> None:
    assert reason(api_key()) is None
    assert reason(api_key(expires_at_ms=1001)) is None
    assert reason(api_key(), Credentials(b"digest", "acme")) is None


def test_unknown_revoked_and_expired_keys_are_told_alike() -> None:
    answers = [
        reason(api_key(), Credentials(b"other")),
        reason(api_key(is_revoked=True)),
        reason(api_key(expires_at_ms=1000)),
        reason(api_key(), Credentials(b"digest", "other")),
        reason(api_key(), revoked=frozenset({("key", "k1")})),
    ]

    assert answers[0] is not None
    assert answers[0][0] is Reason.INVALID_API_KEY
    assert len({str(answer) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("key", "changes", "expected"),
    [
        (api_key(principal(user=user(is_suspended=True))), {}, Reason.USER_SUSPENDED),
        (api_key(), {"revoked": frozenset({("user", "u1")})}, Reason.USER_SUSPENDED),
        (
            api_key(principal(user=user(organization=organization(is_paused=True)))),
            {},
            Reason.ORGANIZATION_PAUSED,
        ),
        (api_key(), {"service": Service(is_paused=True)}, Reason.ORGANIZATION_PAUSED),
        (
            api_key(),
            {"revoked": frozenset({("organization", "o1")})},
            Reason.ORGANIZATION_PAUSED,
        ),
    ],
)
def test_who_is_stopped_learns_why(key: ApiKey, changes: dict[str, Any], expected: Reason) -> None:
    found = reason(key, **changes)

    assert found is not None
    assert found[0] is expected


def test_revocations_of_others_change_nothing() -> None:
    others = frozenset({("key", "k2"), ("user", "k1"), ("organization", "u1")})

    assert reason(api_key(), revoked=others) is None


def test_who_is_suspended_is_told_where_to_ask() -> None:
    service = Service(support_url="https://example.com/support")

    found = reason(api_key(principal(user=user(is_suspended=True))), service=service)

    assert found is not None
    assert "https://example.com/support" in str(found[1])


def device_reason(
    of: Device, device_id: str = "d1", now_ms: int = 1000, **changes: Any
) -> tuple[Reason, dict[str, object]] | None:
    found = snapshot(devices_by_sha256={b"token": of}, **changes)
    try:
        credentials = Credentials(b"token", device_id=device_id)
        assert authenticate(found, credentials, now_ms) is of.principal
    except Refusal as refusal:
        return refusal.reason, dict(refusal.details)
    return None


def test_an_approved_device_is_let_in_with_its_own_id_alone() -> None:
    assert device_reason(device()) is None

    found = device_reason(device(), device_id="d2")

    assert found is not None
    assert found[0] is Reason.INVALID_API_KEY


@pytest.mark.parametrize(
    "status",
    [
        DeviceStatus.PENDING_APPROVAL,
        DeviceStatus.REJECTED,
        DeviceStatus.REVOKED,
        DeviceStatus.UNKNOWN,
    ],
)
def test_a_device_that_is_not_approved_learns_where_it_stands(status: DeviceStatus) -> None:
    service = Service(support_url="https://example.com/help")

    found = device_reason(device(status=status), service=service)

    details = {"status": status.value, "support_url": "https://example.com/help"}
    assert found == (Reason.DEVICE_NOT_APPROVED, details)


def test_a_suspension_says_why_and_until_when_and_lifts_by_itself() -> None:
    suspended = device(
        status=DeviceStatus.SUSPENDED,
        suspended_until_ms=1_795_248_000_500,
        suspension_reason="too loud",
    )

    found = device_reason(suspended, now_ms=1_795_248_000_499)

    details = {"reason": "too loud", "suspended_until": "2026-11-21T08:00:01Z"}
    assert found == (Reason.DEVICE_SUSPENDED, details)
    assert device_reason(suspended, now_ms=1_795_248_000_500) is None


def test_a_device_that_was_revoked_ahead_of_a_transfer_is_refused() -> None:
    found = device_reason(device(), revoked=frozenset({("device", "d1")}))

    assert found == (Reason.DEVICE_NOT_APPROVED, {"status": "revoked"})
    assert is_revoked(frozenset({("device", "d1")}), principal_of(device()))
    assert not is_revoked(frozenset({("key", "d1")}), principal_of(device()))


def test_the_user_of_a_device_counts_too() -> None:
    suspended = principal(kind=SubjectKind.DEVICE, principal_id="d1", user=user(is_suspended=True))

    found = device_reason(device(suspended))

    assert found is not None
    assert found[0] is Reason.USER_SUSPENDED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"service": Service(is_paused=True)}, "This service is paused."),
        ({"is_paused": True}, "This organization is paused."),
        ({"service": Service(is_paused=True), "is_paused": True}, "This service is paused."),
    ],
)
def test_a_pause_stops_keys_and_devices_alike(changes: dict[str, Any], message: str) -> None:
    stopped = dict(changes)
    of = user(organization=organization(is_paused=stopped.pop("is_paused", False)))
    phone = device(principal(kind=SubjectKind.DEVICE, principal_id="d1", user=of))

    by_key = reason(api_key(principal(user=of)), **stopped)
    by_device = device_reason(phone, **stopped)

    assert by_key == (Reason.ORGANIZATION_PAUSED, (message, {}))
    assert by_device is not None
    assert by_device[0] is Reason.ORGANIZATION_PAUSED


@pytest.mark.parametrize(
    ("headers", "is_proof"),
    [
        ({"x-session-token": "t"}, True),
        ({"x-session-token": " t ", "x-device-id": "d1"}, True),
        ({"x-session-token": "t", "x-device-id": "d2"}, False),
        ({"x-session-token": "u", "x-device-id": "d1"}, False),
        ({"x-device-id": "d1"}, False),
        ({"x-session-token": ""}, False),
        ({}, False),
    ],
)
def test_a_token_proves_a_device_wherever_it_stands(
    headers: dict[str, str], is_proof: bool
) -> None:
    pending = device(status=DeviceStatus.PENDING_APPROVAL, principal=None)
    found = snapshot(devices_by_sha256={hashlib.sha256(b"t").digest(): pending})

    assert (presented_device(found, headers) is pending) == is_proof


def principal_of(of: Device) -> Principal:
    assert of.principal is not None
    return of.principal
