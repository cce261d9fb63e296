"""The digest of a configuration: an order-free sum over its resources.

`Position.digest` in `common/v1/position.proto` defines it; the control plane computes the same,
and both are run against the same vectors.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

_MODULUS: Final = 1 << 256


def resource_hash(kind: int, resource_id: str, revision: int, payload: bytes) -> int:
    """Return what one resource, as the bytes received, adds to the digest."""
    name = resource_id.encode()
    head = struct.pack(">II", kind, len(name)) + name + struct.pack(">Q", revision)
    return int.from_bytes(hashlib.sha256(head + payload).digest(), "big")


def digest_of(hashes: Iterable[int]) -> bytes:
    """Return the digest of a configuration whose resources hash to `hashes`: 32 bytes."""
    return (sum(hashes) % _MODULUS).to_bytes(32, "big")
