"""Who calls: the service, organizations, users and keys as a snapshot has them."""

from collections.abc import Mapping
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, UnusableResourceError, referred
from dataplane.control.read_limits import read_entries
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import ApiKey, Organization, Service, User
from dataplane.domain.providers import Router

_KEY_HASH_BYTES: Final = 32
_DEFAULT_OUTPUT_CAP_TOKENS: Final = 4_096


def read_service(_: RawResource, message: pb.Service) -> Service:
    """Return the service.

    Raises:
        UnusableResourceError: One of its limits is bad.
    """
    return Service(
        max_replicas=max(1, message.max_replicas),
        upgrade_url=message.upgrade_url,
        support_url=message.support_url,
        is_paused=message.paused,
        default_user_limits=read_entries(message.default_user_limits, SubjectKind.USER),
        default_global_limits=read_entries(message.default_global_limits, SubjectKind.GLOBAL),
    )


def read_organization(each: RawResource, message: pb.Organization) -> Organization:
    """Return an organization.

    Raises:
        UnusableResourceError: Its time zone or its output cap is none.
    """
    time_zone = message.time_zone or "UTC"
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnusableResourceError(f"there is no time zone {time_zone!r}") from None
    if message.default_output_cap_tokens < 0:
        raise UnusableResourceError("its default output cap is negative")
    return Organization(
        organization_id=each.resource_id,
        name=message.name,
        time_zone=time_zone,
        is_paused=message.paused,
        default_output_cap_tokens=message.default_output_cap_tokens or _DEFAULT_OUTPUT_CAP_TOKENS,
    )


def read_user(
    each: RawResource, message: pb.User, organizations: Mapping[str, Organization]
) -> User:
    """Return a user.

    Raises:
        UnusableResourceError: Its organization is not there.
    """
    return User(
        user_id=each.resource_id,
        name=message.name,
        organization=referred(organizations, message.organization_id, "organization"),
        tier=message.tier,
        is_suspended=message.suspended,
    )


def read_key(
    each: RawResource, message: pb.ApiKey, users: Mapping[str, User], routers: Mapping[str, Router]
) -> tuple[bytes, ApiKey]:
    """Return the hash that a key is found by, and the key.

    Raises:
        UnusableResourceError: Its hash is none, or its user is not there.
        ValueError: Its expiry is no time.
    """
    if len(message.key_sha256) != _KEY_HASH_BYTES:
        raise UnusableResourceError("its hash is not 32 bytes")
    # A key without a router is refused at its call: `no_route` says more than a missing key.
    expires_at_ms = message.expires_at.ToMilliseconds() if message.HasField("expires_at") else None
    key = ApiKey(
        key_id=each.resource_id,
        name=message.name,
        user=referred(users, message.user_id, "user"),
        router_id=message.router_id if message.router_id in routers else "",
        allowed_models=tuple(message.allowed_models),
        expires_at_ms=expires_at_ms,
        is_revoked=message.revoked,
    )
    return message.key_sha256, key
