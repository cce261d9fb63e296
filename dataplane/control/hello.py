"""How a node introduces itself on a stream."""

import secrets
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.holdings import Holdings
from dataplane.control.sealing import SealingKey
from dataplane.control.transfers import position_to_proto

PROTOCOL_VERSION: Final = 2
_CAPABILITIES: Final = (
    pb.CAPABILITY_DELTA,
    pb.CAPABILITY_SEALED_SECRETS,
    pb.CAPABILITY_GOODBYE,
)


@dataclass(frozen=True, slots=True)
class Node:
    """Who this data plane is.

    Attributes:
        node_id: Unique among live nodes.
        version: Of the software.
        token: What it proves itself with; empty: its connection does.
        boot_id: Unique to this run of the process.
    """

    node_id: str
    version: str
    token: str = field(repr=False)
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes along with the stream."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def hello(self, holdings: Holdings, sealing_key: SealingKey) -> pb.StreamConfigRequest:
        """Return the first message of a stream, from a node with these holdings."""
        hello = pb.Hello(
            node_id=self.node_id,
            version=self.version,
            protocol_version=PROTOCOL_VERSION,
            boot_id=self.boot_id,
            capabilities=_CAPABILITIES,
            sealing_key=sealing_key.public,
        )
        if not holdings.is_empty:
            hello.applied.CopyFrom(position_to_proto(holdings.position))
        return pb.StreamConfigRequest(hello=hello)
