"""Which changes do not wait for company: those after which something may be refused that was admitted before. Pure."""

from typing import Final

from tollkeeper.common.v1 import devices_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

_ALWAYS_URGENT: Final = frozenset(
    {pb.RESOURCE_KIND_SERVICE, pb.RESOURCE_KIND_SUBJECT_LIMITS, pb.RESOURCE_KIND_TIER}
)
_REFUSED_DEVICES: Final = frozenset(
    {
        devices_pb2.DEVICE_STATUS_REJECTED,
        devices_pb2.DEVICE_STATUS_SUSPENDED,
        devices_pb2.DEVICE_STATUS_REVOKED,
    }
)


def is_urgent(before: pb.Resource | None, after: pb.Resource) -> bool:
    """Say whether a new or changed resource is to be published at once.

    Urgent is, by the simplest rule that is sound: every change of the service's settings, of a tier
    or of a subject's limits, whichever way they moved; every organization that is paused, user that
    is suspended, key that is revoked or device that is rejected, suspended or revoked, also if it
    was before; and every device with another session token. Every deletion is urgent too.

    Args:
        before: The resource as it was; None when it is new.
        after: The resource as it is.
    """
    return after.kind in _ALWAYS_URGENT or _is_refused(after) or _has_another_token(before, after)


def _is_refused(resource: pb.Resource) -> bool:
    """Say whether a principal is rejected, revoked, suspended or paused by itself."""
    match resource.kind:
        case pb.RESOURCE_KIND_API_KEY:
            return pb.ApiKey.FromString(resource.payload).revoked
        case pb.RESOURCE_KIND_USER:
            return pb.User.FromString(resource.payload).suspended
        case pb.RESOURCE_KIND_ORGANIZATION:
            return pb.Organization.FromString(resource.payload).paused
        case pb.RESOURCE_KIND_DEVICE:
            return pb.Device.FromString(resource.payload).status in _REFUSED_DEVICES
        case _:
            return False


def _has_another_token(before: pb.Resource | None, after: pb.Resource) -> bool:
    """Say whether a device's former session token is refused from now on."""
    if before is None or after.kind != pb.RESOURCE_KIND_DEVICE:
        return False
    former = pb.Device.FromString(before.payload).token_sha256
    return former != pb.Device.FromString(after.payload).token_sha256
