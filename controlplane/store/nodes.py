"""Nodes that joined or are banned, and what a node may have received."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.kinds import Kind
from controlplane.store.fleet_tables import NodeCertificate, RowVersion
from controlplane.store.tables import Credential, NodeIdentity, Provider, Tombstone

_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RosterState:
    """Changes whenever any node's row does: the newest revision among them, and how many there are."""

    revision: int
    count: int


class Nodes:
    """The nodes within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def all(self) -> Sequence[NodeIdentity]:
        """Return every node, by id; there are few."""
        statement = select(NodeIdentity).order_by(col(NodeIdentity.id))
        return (await self._session.exec(statement)).all()

    async def state(self) -> RosterState:
        """Return what changes with any of them."""
        statement = select(func.max(NodeIdentity.revision), func.count(col(NodeIdentity.id)))
        revision, count = (await self._session.exec(statement)).one()
        return RosterState(int(revision or 0), int(count))

    async def find(self, node_id: str) -> NodeIdentity | None:
        """Return a node, or None."""
        return await self._session.get(NodeIdentity, node_id)

    async def find_for_change(self, node_id: str) -> NodeIdentity | None:
        """Return a node, or None, and keep others from changing it until this transaction ends."""
        return await self._session.get(
            NodeIdentity, node_id, with_for_update=True, populate_existing=True
        )

    async def certificates(self) -> Mapping[str, NodeCertificate]:
        """Return the newest certificate of every node, by node id."""
        found = (await self._session.exec(select(NodeCertificate))).all()
        return {each.node_id: each for each in found}

    async def keep_certificate(self, node_id: str, serial: str, expires_at: datetime) -> None:
        """Remember a node's newest certificate in place of the one before."""
        row = await self._session.get(NodeCertificate, node_id, with_for_update=True)
        if row is None:
            row = NodeCertificate(node_id=node_id, serial=serial, expires_at=expires_at)
        row.serial, row.expires_at = serial, expires_at
        self._session.add(row)

    async def forget_certificate(self, node_id: str) -> None:
        """Remember nothing of a node's certificate."""
        row = await self._session.get(NodeCertificate, node_id)
        if row is not None:
            await self._session.delete(row)

    async def received_credentials(
        self, row: NodeIdentity | None, *, at_most: int = 10_000
    ) -> list[str]:
        """Return the names of the credentials that a node may have received since it was first seen.

        Rather too many than too few: all that are in any scope that it ever had, and by their ids all that were deleted
        since, as far as that is remembered. `row` is None for a node of which nothing is known but its id: its scope
        was everything, and it may have been there from the beginning. The same goes for one that never joined: its row is
        as old as its ban.
        """
        if row is None or row.enrolled_at is None:
            since, scope = _BEGINNING, frozenset[str]()
        else:
            since, scope = row.created_at, await self._scope_ever(row)
        statement = (
            select(Credential.name, Provider.organization_id)
            .join(Provider, col(Provider.id) == col(Credential.provider_id))
            .order_by(col(Credential.name))
        )
        found = (await self._session.exec(statement)).all()
        names = [name for name, owner in found if not scope or owner is None or owner in scope]
        return [*names, *sorted(await self._deleted_credentials(since))][:at_most]

    async def _scope_ever(self, row: NodeIdentity) -> frozenset[str]:
        """Return every organization that was in a node's scope since its row exists; none means all."""
        statement = select(RowVersion.columns).where(
            RowVersion.kind == Kind.NODE,
            RowVersion.id == row.id,
            col(RowVersion.at) >= row.created_at,
        )
        versions = (await self._session.exec(statement)).all()
        former = [each["organization_ids"] for each in versions if each is not None]
        return _union([row.organization_ids, *former])

    async def _deleted_credentials(self, since: datetime) -> set[str]:
        stones = select(Tombstone.id).where(
            Tombstone.kind == Kind.CREDENTIAL, col(Tombstone.deleted_at) >= since
        )
        ends = select(RowVersion.id).where(
            RowVersion.kind == Kind.CREDENTIAL,
            col(RowVersion.columns).is_(None),
            col(RowVersion.at) >= since,
        )
        gone = {*(await self._session.exec(stones)).all(), *(await self._session.exec(ends)).all()}
        # Ids are never used again, but a rollback may bring a row back.
        still = select(Credential.id).where(col(Credential.id).in_(gone))
        return gone - set((await self._session.exec(still)).all())


def _union(scopes: Iterable[Sequence[str]]) -> frozenset[str]:
    """Return what is in any of several scopes; an empty one is everything, and stays so."""
    found: set[str] = set()
    for scope in scopes:
        if not scope:
            return frozenset()
        found.update(scope)
    return frozenset(found)
