"""Waiting for the data planes: what a request asks for, and what an answer says of it.

Messages of changes have two fields for this, under the same names and numbers everywhere: `wait_for_propagation` of a
request, and `propagation` of what it answers with. Resources carry the latter, so it comes back in requests too, where it
says nothing.
"""

from datetime import timedelta
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tollkeeper.admin.v1 import changes_pb2

from controlplane.domain.revocations import Propagation, Receipt

WAIT: Final = "wait_for_propagation"
PROPAGATION: Final = "propagation"

MessageT = TypeVar("MessageT", bound=Message)


def wait_ms_of(request: Any) -> int:  # Any: any request, also one without the field
    """Return how long to wait for the data planes, in milliseconds; 0 when nobody asked or nothing is kept."""
    if WAIT not in request.DESCRIPTOR.fields_by_name or getattr(request, "validate_only", False):
        return 0
    wait: timedelta = request.wait_for_propagation.ToTimedelta()
    # Rounded up: who asks for less than a millisecond did not ask for nothing.
    return -(-wait // timedelta(milliseconds=1))


def revocation_wait_ms(request: Any) -> int:  # Any: a request to revoke, of any noun
    """Return how long a receipt is waited for, in milliseconds: as the general field says, or else as `wait_ms` does."""
    return wait_ms_of(request) if request.HasField(WAIT) else int(request.wait_ms)


def without_waiting(request: MessageT) -> MessageT:
    """Return a copy that says what to change and nothing of who waits for it.

    Two requests that differ in nothing else are the same change: one may repeat the other.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    _clear(copy)
    return copy


def propagation_to_proto(propagation: Propagation) -> changes_pb2.Propagation:
    """Return who has applied a change, as the admin API shows it."""
    return changes_pb2.Propagation(
        revision=propagation.revision,
        applied=[
            changes_pb2.AppliedChange(node=applied.node, ms=applied.ms)
            for applied in propagation.applied
        ],
        missing=propagation.missing,
    )


def receipt_to_proto(receipt: Receipt) -> changes_pb2.RevocationReceipt:
    """Return who obeys a revocation, as the admin API shows it."""
    return changes_pb2.RevocationReceipt(
        revision=receipt.revision,
        applied=[
            changes_pb2.AppliedRevocation(node=each.node, ms=each.ms, is_kept=each.is_kept)
            for each in receipt.applied
        ],
        missing=receipt.missing,
    )


def _clear(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in (WAIT, PROPAGATION):
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
            # No list of any request holds resources that were answers once.
            _clear(value)
