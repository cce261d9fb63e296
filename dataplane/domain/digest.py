"""The digest of a configuration: an order-free sum over its resources.

`Position.digest` in `common/v1/position.proto` defines it; the control plane computes the same,
and both are run against the same vectors. As a sum it can follow a change without looking at the
rest: what is gone is subtracted, what is new is added.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

DIGEST_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * DIGEST_BYTES)


def resource_hash(kind: int, resource_id: str, revision: int, payload: bytes) -> int:
    """Return what one resource, as the bytes received, adds to the digest.

    Neither `kind` nor `revision` may be negative.
    """
    name = resource_id.encode()
    head = struct.pack(">II", kind, len(name)) + name + struct.pack(">Q", revision)
    return int.from_bytes(hashlib.sha256(head + payload).digest(), "big")


def digest_of(hashes: Iterable[int]) -> bytes:
    """Return the digest of a configuration whose resources hash to `hashes`: 32 bytes."""
    return digest_of_sum(sum(hashes))


def digest_of_sum(total: int) -> bytes:
    """Return the digest of a configuration whose hashes add up to `total`: 32 bytes.

    `total` may be below zero or above the modulus.
    """
    return (total % _MODULUS).to_bytes(DIGEST_BYTES, "big")


def sum_of_digest(digest: bytes) -> int:
    """Return a digest as the number that hashes are added to and subtracted from."""
    return int.from_bytes(digest, "big")
