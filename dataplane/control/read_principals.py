"""Who calls: the service, organizations, tiers, users, keys and devices as a snapshot has them."""

from collections.abc import Mapping
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tollkeeper.common.v1 import devices_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

from dataplane.control.raw_resources import RawResource, UnusableResourceError, referred
from dataplane.control.read_limits import read_entries
from dataplane.domain.limiting import SubjectKind
from dataplane.domain.principals import (
    ApiKey,
    Device,
    DeviceStatus,
    Organization,
    Principal,
    Service,
    Tier,
    User,
)
from dataplane.domain.providers import Router

_HASH_BYTES: Final = 32
_DEFAULT_OUTPUT_CAP_TOKENS: Final = 4_096
_STATUSES: Final = {
    devices_pb2.DEVICE_STATUS_PENDING_APPROVAL: DeviceStatus.PENDING_APPROVAL,
    devices_pb2.DEVICE_STATUS_APPROVED: DeviceStatus.APPROVED,
    devices_pb2.DEVICE_STATUS_REJECTED: DeviceStatus.REJECTED,
    devices_pb2.DEVICE_STATUS_SUSPENDED: DeviceStatus.SUSPENDED,
    devices_pb2.DEVICE_STATUS_REVOKED: DeviceStatus.REVOKED,
}


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
        fails_open=message.on_limits_unavailable == pb.LIMITS_UNAVAILABLE_POLICY_OPEN,
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
    if len(message.key_sha256) != _HASH_BYTES:
        raise UnusableResourceError("its hash is not 32 bytes")
    key = ApiKey(
        key_id=each.resource_id,
        principal=_principal(SubjectKind.KEY, each, message, users, routers),
        expires_at_ms=(
            message.expires_at.ToMilliseconds() if message.HasField("expires_at") else None
        ),
        is_revoked=message.revoked,
    )
    return message.key_sha256, key


def read_device(
    each: RawResource, message: pb.Device, users: Mapping[str, User], routers: Mapping[str, Router]
) -> tuple[bytes, Device]:
    """Return the hash that a device is found by, and the device.

    Raises:
        UnusableResourceError: Its hash is none, or its user is not there.
        ValueError: The end of its suspension is no time.
    """
    if len(message.token_sha256) != _HASH_BYTES:
        raise UnusableResourceError("its hash is not 32 bytes")
    principal = None
    if message.user_id:
        principal = _principal(SubjectKind.DEVICE, each, message, users, routers)
    until = message.suspended_until
    device = Device(
        device_id=each.resource_id,
        name=message.name,
        status=_STATUSES.get(message.status, DeviceStatus.UNKNOWN),
        principal=principal,
        suspended_until_ms=until.ToMilliseconds() if message.HasField("suspended_until") else None,
        suspension_reason=message.suspension_reason,
    )
    return message.token_sha256, device


def _principal(
    kind: SubjectKind,
    each: RawResource,
    message: pb.ApiKey | pb.Device,
    users: Mapping[str, User],
    routers: Mapping[str, Router],
) -> Principal:
    user = referred(users, message.user_id, "user")
    return Principal(
        kind=kind,
        principal_id=each.resource_id,
        name=message.name,
        user=user,
        # Without a router it is refused at its call: `no_route` says more than a missing credential.
        router_id=message.router_id if message.router_id in routers else "",
        allowed_models=tuple(message.allowed_models),
        tier=message.tier or user.tier,
    )


def read_tier(each: RawResource, message: pb.Tier) -> Tier:
    """Return a tier.

    Raises:
        UnusableResourceError: It has no name, or one of its limits is bad.
        ValueError: A limit is out of bounds.
    """
    if not message.name or message.name != each.resource_id:
        raise UnusableResourceError("its id is not its name")
    return Tier(
        name=message.name,
        device_limits=read_entries(message.device_limits, SubjectKind.DEVICE),
        ip_limits=read_entries(message.ip_limits, SubjectKind.IP),
        user_limits=read_entries(message.user_limits, SubjectKind.USER),
        credential_limits=read_entries(message.credential_limits, SubjectKind.KEY),
    )
