"""Revocations and waits as the servicers see them: something takes changes to the data planes and says who has them."""

from typing import Final, Protocol

from sqlmodel import col, select
from tollkeeper.config.v1 import resources_pb2

from controlplane.domain.kinds import Kind
from controlplane.domain.revocations import (
    AppliedChange,
    AppliedRevocation,
    Propagation,
    Receipt,
)
from controlplane.store.fleet_tables import RevocationRow
from controlplane.store.tables import ApiKey, ConfigurationRow, Device, Organization, User
from controlplane.store.transactions import Transaction

__all__ = [
    "REVOCABLE",
    "AppliedChange",
    "AppliedRevocation",
    "Propagation",
    "Receipt",
    "Revoker",
    "keep_revocation",
    "revoke_after_commit",
]

REVOCABLE: Final[dict[Kind, int]] = {
    Kind.ORGANIZATION: resources_pb2.RESOURCE_KIND_ORGANIZATION,
    Kind.USER: resources_pb2.RESOURCE_KIND_USER,
    Kind.API_KEY: resources_pb2.RESOURCE_KIND_API_KEY,
    Kind.DEVICE: resources_pb2.RESOURCE_KIND_DEVICE,
}
"""What data planes can be told to refuse, by kind: numbers of `config.v1.ResourceKind`."""


class Revoker(Protocol):
    """Takes revocations to the data planes, and knows how far they follow the configuration."""

    async def revoke(
        self,
        kind: int,
        subject_id: str,
        revision: int,
        *,
        organization_id: str = "",
        terminate_streams: bool,
        wait_ms: int,
    ) -> Receipt:
        """Tell every live node that a subject is refused, and wait for the nodes to say so.

        Called after the commit, so a failure here does not undo anything; nodes that are not reached learn of it from
        what was kept with the change. Repeating it is harmless.

        Args:
            kind: What is revoked: a number of `config.v1.ResourceKind` (organization, user, API key or device).
            subject_id: Its resource id.
            revision: The committed change that made it so.
            organization_id: Whose it was; nodes that do not serve that organization are not asked. Empty: all are.
            terminate_streams: End its streams in flight too.
            wait_ms: How long to wait for the nodes, at most; 0 returns at once.
        """
        ...

    async def propagated(self, revision: int, *, wait_ms: int) -> Propagation:
        """Wait until every live node has applied a committed change, and say which have.

        Cancellation ends the wait and nothing else.

        Args:
            revision: The change, or the newest one where nothing had to be changed.
            wait_ms: How long to wait for the nodes, at most; 0 returns at once.
        """
        ...


async def keep_revocation(
    tx: Transaction, subject: ConfigurationRow, *, terminate_streams: bool = False
) -> str:
    """Have it kept with this change that `subject` is out of service for good; return the organization's id.

    Where that is kept already and only the end of its streams was not asked for, the subject counts as changed, so that
    every control plane learns of it.
    """
    kind, organization_id = REVOCABLE[subject.KIND], await _organization_id(tx, subject)
    tx.revoke(
        kind, subject.id, organization_id=organization_id, terminate_streams=terminate_streams
    )
    if terminate_streams and not await _is_kept_with_termination(tx, kind, subject.id):
        tx.touch(subject)
    return organization_id


async def revoke_after_commit(tx: Transaction, revoker: Revoker, subject: ConfigurationRow) -> None:
    """Keep that `subject` is gone for good, and tell the data planes once that is committed, without waiting."""
    organization_id = await keep_revocation(tx, subject)
    tx.after_commit(
        lambda: revoker.revoke(
            REVOCABLE[subject.KIND],
            subject.id,
            tx.revision,
            organization_id=organization_id,
            terminate_streams=False,
            wait_ms=0,
        )
    )


async def _is_kept_with_termination(tx: Transaction, kind: int, subject_id: str) -> bool:
    kept = await tx.session.exec(
        select(RevocationRow.revision)
        .where(
            col(RevocationRow.kind) == kind,
            col(RevocationRow.subject_id) == subject_id,
            col(RevocationRow.terminate_streams).is_(True),
        )
        .limit(1)
    )
    return kept.first() is not None


async def _organization_id(tx: Transaction, subject: ConfigurationRow) -> str:
    """Return whose a subject is; empty for a device that never had a user."""
    match subject:
        case Organization():
            return subject.id
        case User():
            return subject.organization_id
        case ApiKey() | Device() if subject.user_id is not None:
            # Gone where it was deleted in the same change: then nobody needs to know whose it was.
            user = (await tx.users.by_ids([subject.user_id])).get(subject.user_id)
            return user.organization_id if user else ""
        case _:
            return ""
