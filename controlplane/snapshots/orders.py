"""Revocations: what is told to nodes ahead of the configuration, and remembered for those that come back."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import Scope, contains
from controlplane.snapshots.snapshot import Position
from controlplane.store.changes import MAX_REVOCATIONS
from controlplane.store.fleet_tables import RevocationRow

LIFETIME: Final = timedelta(days=7)

# To a node of another epoch: which of them it knows cannot be told, and everything is on its way to it.
TOLD_ACROSS_EPOCHS: Final = 1_000


@dataclass(frozen=True, slots=True)
class RevocationOrder:
    """What is refused from the change of `revision` on."""

    subject: ResourceKey
    revision: int
    config_epoch: str
    issued_at: datetime
    organization_id: str = ""
    terminate_streams: bool = False

    @property
    def revocation_id(self) -> str:
        """The same on every control plane, so that a node told twice knows it."""
        ending = ":terminate" if self.terminate_streams else ""
        subject = f"{int(self.subject.kind)}:{self.subject.resource_id}"
        return f"{self.config_epoch}:{self.revision}:{subject}{ending}"

    def concerns(self, scope: Scope) -> bool:
        """Say whether nodes of `scope` know the subject."""
        return contains(scope, self.organization_id)

    def to_proto(self) -> pb.Revocation:
        """Encode it."""
        issued_at = Timestamp()
        issued_at.FromDatetime(self.issued_at)
        return pb.Revocation(
            revocation_id=self.revocation_id,
            revision=self.revision,
            config_epoch=self.config_epoch,
            subject=resources_pb2.ResourceRef(kind=self.subject.kind, id=self.subject.resource_id),
            terminate_streams=self.terminate_streams,
            issued_at=issued_at,
            organization_id=self.organization_id,
        )


def order_from_proto(message: pb.Revocation) -> RevocationOrder:
    """Decode an order."""
    return RevocationOrder(
        ResourceKey(message.subject.kind, message.subject.id),
        message.revision,
        message.config_epoch,
        message.issued_at.ToDatetime(tzinfo=UTC),
        message.organization_id,
        message.terminate_streams,
    )


def order_from_row(row: RevocationRow, config_epoch: str) -> RevocationOrder:
    """Return the order that was kept with a change."""
    return RevocationOrder(
        ResourceKey(resources_pb2.ResourceKind.ValueType(row.kind), row.subject_id),
        row.revision,
        config_epoch,
        row.at,
        row.organization_id,
        row.terminate_streams,
    )


class RecentOrders:
    """The orders of the last 7 days, at most `MAX_REVOCATIONS`: who comes back is told those that it missed."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._orders: OrderedDict[str, RevocationOrder] = OrderedDict()

    def add(self, order: RevocationOrder) -> bool:
        """Remember an order; say whether it is a new one."""
        if order.revocation_id in self._orders:
            return False
        self._orders[order.revocation_id] = order
        if len(self._orders) > MAX_REVOCATIONS:
            self._orders.popitem(last=False)
        return True

    def missed_by(self, applied: Position, scope: Scope) -> Iterator[RevocationOrder]:
        """Yield what a node that has `applied` may not know; nothing to one that has nothing.

        After a database was restored that is all there is, since keys do not come back with it.
        """
        if not applied.config_epoch:
            return
        since = self._clock() - LIFETIME
        orders = [each for each in self._orders.values() if each.issued_at >= since]
        others = [each for each in orders if each.config_epoch != applied.config_epoch]
        told = {each.revocation_id for each in others[-TOLD_ACROSS_EPOCHS:]}
        for order in orders:
            is_missed = (
                order.revision > applied.revision
                if order.config_epoch == applied.config_epoch
                else order.revocation_id in told
            )
            if is_missed and order.concerns(scope):
                yield order
