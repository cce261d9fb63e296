from typing import Any

import pytest

from dataplane.domain.authentication import authenticate
from dataplane.domain.credentials import Credentials
from dataplane.domain.principals import ApiKey, Service
from dataplane.domain.refusals import Reason, Refusal
from tests.unit.dataplane.configuration import api_key, organization, snapshot, user

GOOD = Credentials(b"digest")


def reason(
    key: ApiKey, credentials: Credentials = GOOD, **changes: Any
) -> tuple[Reason, object] | None:
    try:
        assert authenticate(snapshot(key=key, **changes), credentials, now_ms=1000) is key
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
        (api_key(user=user(is_suspended=True)), {}, Reason.USER_SUSPENDED),
        (api_key(), {"revoked": frozenset({("user", "u1")})}, Reason.USER_SUSPENDED),
        (
            api_key(user=user(organization=organization(is_paused=True))),
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

    found = reason(api_key(user=user(is_suspended=True)), service=service)

    assert found is not None
    assert "https://example.com/support" in str(found[1])
