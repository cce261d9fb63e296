"""The digest of a configuration: one number for its whole content, whatever its order.

Each resource is hashed by itself and the hashes are added modulo 2^256. So a change costs two
hashes (the old one is subtracted, the new one is added) and not a walk over everything, and two
sides that hold the same resources agree without agreeing on an order. The definition is that of
`tollkeeper.common.v1.Position.digest`; the vectors are in `tests/contract/vectors/digest.json`.
"""

import hashlib
import struct
from typing import Final

_MODULUS: Final = 1 << 256
_DIGEST_BYTES: Final = 32


def resource_hash(kind: int, resource_id: str, revision: int, payload: bytes) -> int:
    """Return what one resource contributes to the digest, below 2^256.

    Args:
        kind: The number of its `ResourceKind`, 0 to 2^32 - 1.
        resource_id: Unique within the kind.
        revision: The revision that last changed it, 0 to 2^64 - 1.
        payload: The serialized message, exactly as it travels.
    """
    encoded_id = resource_id.encode()
    header = struct.pack(">II", kind, len(encoded_id))
    hashed = hashlib.sha256(header)
    hashed.update(encoded_id)
    hashed.update(struct.pack(">Q", revision))
    hashed.update(payload)
    return int.from_bytes(hashed.digest(), "big")


def with_resource(total: int, added: int) -> int:
    """Return the sum `total` with the resource hash `added` in it."""
    return (total + added) % _MODULUS


def without_resource(total: int, removed: int) -> int:
    """Return the sum `total` with the resource hash `removed` taken out of it."""
    return (total - removed) % _MODULUS


def digest_bytes(total: int) -> bytes:
    """Return a sum as it stands in a position: 32 bytes, big-endian."""
    return total.to_bytes(_DIGEST_BYTES, "big")
