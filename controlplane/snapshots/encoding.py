"""Parts of messages as bytes: a resource is encoded once, whoever it is sent to, and a chunk is parts joined.

The framing is that of protocol buffers (https://protobuf.dev/programming-guides/encoding): a field is its number and wire
type, then for wire type 2 its length. Written out here because the generated classes would decode and encode each part
again for each node; a test parses the result with them.
"""

from collections.abc import Iterable
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.references import ResourceKey

_TRANSFER_ID: Final = bytes([pb.TransferChunk.TRANSFER_ID_FIELD_NUMBER << 3])
_RESOURCE: Final = bytes([pb.TransferChunk.RESOURCES_FIELD_NUMBER << 3 | 2])
_REMOVED: Final = bytes([pb.TransferChunk.REMOVED_FIELD_NUMBER << 3 | 2])
_SECRET: Final = bytes([pb.TransferChunk.SECRETS_FIELD_NUMBER << 3 | 2])
_CHUNK: Final = bytes([pb.StreamConfigResponse.TRANSFER_CHUNK_FIELD_NUMBER << 3 | 2])


def varint(number: int) -> bytes:
    """Return a number from 0 on as it travels, seven bits in each byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def resource_entry(resource: resources_pb2.Resource) -> bytes:
    """Return an entry of `TransferChunk.resources`."""
    return _entry(_RESOURCE, resource.SerializeToString())


def decoded(entry: bytes) -> resources_pb2.Resource:
    """Return the resource of an entry that `resource_entry` made."""
    start = 1
    while entry[start] & 0x80:
        start += 1
    return resources_pb2.Resource.FromString(entry[start + 1 :])


def removed_entry(key: ResourceKey) -> bytes:
    """Return an entry of `TransferChunk.removed`."""
    reference = resources_pb2.ResourceRef(kind=key.kind, id=key.resource_id)
    return _entry(_REMOVED, reference.SerializeToString())


def secret_entry(bundle: pb.SecretBundle) -> bytes:
    """Return an entry of `TransferChunk.secrets`."""
    return _entry(_SECRET, bundle.SerializeToString())


def chunk_response(transfer_id: int, entries: Iterable[bytes]) -> bytes:
    """Return a whole StreamConfigResponse that holds one chunk of these entries."""
    head = _TRANSFER_ID + varint(transfer_id)
    parts = [b"", head, *entries]
    parts[0] = _CHUNK + varint(sum(map(len, parts)))
    return b"".join(parts)


def _entry(tag: bytes, message: bytes) -> bytes:
    return b"".join((tag, varint(len(message)), message))
