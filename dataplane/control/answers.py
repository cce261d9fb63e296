"""What a node answers to transfers and revocations, each within one message whatever it was sent."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.compile import Quarantined
from dataplane.control.refused import RefusedTransferError
from dataplane.control.transfers import position_to_proto
from dataplane.domain.snapshot import Position

_MAX_QUARANTINED: Final = 1_000
_MAX_DETAIL_CHARACTERS: Final = 500
# A thousand of the longest fit into one message of 4 MiB, in any script.
_MAX_ID_CHARACTERS: Final = 200


def ack(
    transfer_id: int, position: Position, quarantined: Iterable[Quarantined], apply_ms: int
) -> pb.StreamConfigRequest:
    """Return that a transfer is in force, and the first 1,000 leaves that are set aside."""
    named = [
        pb.Quarantined(
            resource=resources_pb2.ResourceRef(
                kind=each.kind,  # type: ignore[arg-type] # as it was received
                id=each.resource_id[:_MAX_ID_CHARACTERS],
            ),
            detail=each.detail[:_MAX_DETAIL_CHARACTERS],
        )
        for each in islice(quarantined, _MAX_QUARANTINED)
    ]
    message = pb.Ack(
        transfer_id=transfer_id,
        applied=position_to_proto(position),
        quarantined=named,
        apply_ms=apply_ms,
    )
    return pb.StreamConfigRequest(ack=message)


def nack(
    transfer_id: int, position: Position, refused: RefusedTransferError
) -> pb.StreamConfigRequest:
    """Return that a transfer was refused, and what is in force instead."""
    message = pb.Nack(
        transfer_id=transfer_id,
        applied=position_to_proto(position),
        reason=refused.reason,
        problems=refused.problems,
    )
    return pb.StreamConfigRequest(nack=message)


def revocation_ack(revocation_id: str, is_kept: bool) -> pb.StreamConfigRequest:
    """Return that a revocation is in force, and whether it is on the disk too."""
    message = pb.RevocationAck(revocation_id=revocation_id, is_kept=is_kept)
    return pb.StreamConfigRequest(revocation_ack=message)
