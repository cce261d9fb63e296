"""What a resource refers to, read from its payload."""

from typing import Final, NamedTuple

from google.protobuf.message import Message
from tollkeeper.common.v1 import devices_pb2, limits_pb2
from tollkeeper.config.v1 import resources_pb2 as pb

SERVICE_ID: Final = "service"


class ResourceKey(NamedTuple):
    """Names a resource: its kind and its id."""

    kind: pb.ResourceKind.ValueType
    resource_id: str

    def __str__(self) -> str:
        name = pb.ResourceKind.Name(self.kind).removeprefix("RESOURCE_KIND_").lower()
        return f"{name} {self.resource_id}"


_LIMITED_KINDS: Final = {
    limits_pb2.SUBJECT_KIND_ORGANIZATION: pb.RESOURCE_KIND_ORGANIZATION,
    limits_pb2.SUBJECT_KIND_USER: pb.RESOURCE_KIND_USER,
    limits_pb2.SUBJECT_KIND_KEY: pb.RESOURCE_KIND_API_KEY,
    limits_pb2.SUBJECT_KIND_DEVICE: pb.RESOURCE_KIND_DEVICE,
}
_MESSAGES: Final[dict[int, type[Message]]] = {
    pb.RESOURCE_KIND_USER: pb.User,
    pb.RESOURCE_KIND_API_KEY: pb.ApiKey,
    pb.RESOURCE_KIND_DEVICE: pb.Device,
    pb.RESOURCE_KIND_PROVIDER: pb.Provider,
    pb.RESOURCE_KIND_CREDENTIAL: pb.Credential,
    pb.RESOURCE_KIND_ROUTER: pb.Router,
    pb.RESOURCE_KIND_SUBJECT_LIMITS: pb.SubjectLimits,
}
"""The kinds that refer to others."""

_ROUTELESS_DEVICES: Final = frozenset(
    {devices_pb2.DEVICE_STATUS_REJECTED, devices_pb2.DEVICE_STATUS_REVOKED}
)


def references_of(resource: pb.Resource) -> tuple[ResourceKey, ...]:
    """Return the resources that must exist for `resource` to make sense.

    Raises:
        google.protobuf.message.DecodeError: The payload is not the message of its kind.
    """
    message_type = _MESSAGES.get(resource.kind)
    return references_in(message_type.FromString(resource.payload)) if message_type else ()


def references_in(message: Message) -> tuple[ResourceKey, ...]:
    """Return what `message`, the payload of a resource, refers to.

    A price refers to a provider by name or by kind, and may come before it: that is no reference. Neither is a tier: one
    that is not there is none.
    """
    match message:
        case pb.User():
            return (ResourceKey(pb.RESOURCE_KIND_ORGANIZATION, message.organization_id),)
        case pb.ApiKey():
            return _of_key(message)
        case pb.Device():
            return _of_device(message)
        case pb.Provider():
            return (
                *_owner(message.organization_id),
                *(
                    ResourceKey(pb.RESOURCE_KIND_CREDENTIAL, credential_id)
                    for credential_id in message.credential_ids
                ),
            )
        case pb.Credential():
            return (ResourceKey(pb.RESOURCE_KIND_PROVIDER, message.provider_id),)
        case pb.Router():
            providers = sorted({rule.provider_id for rule in message.rules})
            return (
                *_owner(message.organization_id),
                *(ResourceKey(pb.RESOURCE_KIND_PROVIDER, provider) for provider in providers),
            )
        case pb.SubjectLimits():
            kind = _LIMITED_KINDS.get(message.subject_kind)
            return () if kind is None else (ResourceKey(kind, message.subject_id),)
        case _:
            return ()


def _of_key(key: pb.ApiKey) -> tuple[ResourceKey, ...]:
    user = ResourceKey(pb.RESOURCE_KIND_USER, key.user_id)
    if key.revoked:
        # It will never route again, so its router may go before it.
        return (user,)
    return (user, ResourceKey(pb.RESOURCE_KIND_ROUTER, key.router_id))


def _of_device(device: pb.Device) -> tuple[ResourceKey, ...]:
    found = []
    if device.user_id:
        found.append(ResourceKey(pb.RESOURCE_KIND_USER, device.user_id))
    # As for keys: one that will not route needs no router.
    if device.router_id and device.status not in _ROUTELESS_DEVICES:
        found.append(ResourceKey(pb.RESOURCE_KIND_ROUTER, device.router_id))
    return tuple(found)


def _owner(organization_id: str) -> tuple[ResourceKey, ...]:
    if not organization_id:
        return ()
    return (ResourceKey(pb.RESOURCE_KIND_ORGANIZATION, organization_id),)
