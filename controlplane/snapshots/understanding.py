"""What a node understands: said in its Hello, for the length of its stream."""

from dataclasses import dataclass
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.bundles import check_sealing_key

PROTOCOL_VERSION: Final = 2
"""The newest shape of the contract that this control plane speaks; it speaks every older one too."""


@dataclass(frozen=True, slots=True)
class Understanding:
    """What may be said to a node. Capabilities that are not known here are skipped."""

    protocol_version: int
    """The one that is spoken: the lower of both sides' newest."""
    has_delta: bool
    has_goodbye: bool
    sealing_key: bytes | None
    """Secrets are sealed to it; None: they travel in clear."""


def understanding_of(hello: pb.Hello) -> Understanding:
    """Return what the node that says `hello` understands.

    Raises:
        UnusableKeyError: It asks for sealed secrets, and nothing can be sealed to its key. It is not sent them in clear
            instead.
    """
    sealing_key = None
    if pb.CAPABILITY_SEALED_SECRETS in hello.capabilities:
        sealing_key = hello.sealing_key
        check_sealing_key(sealing_key)
    return Understanding(
        protocol_version=min(hello.protocol_version, PROTOCOL_VERSION),
        has_delta=pb.CAPABILITY_DELTA in hello.capabilities,
        has_goodbye=pb.CAPABILITY_GOODBYE in hello.capabilities,
        sealing_key=sealing_key,
    )
