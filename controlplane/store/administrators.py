"""Administrators, found by the digest of their token."""

from collections.abc import Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.roles import Role
from controlplane.store.rows import NamedRows
from controlplane.store.tables import Administrator


class Administrators(NamedRows[Administrator]):
    """The administrators within one session."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, Administrator, "administrator")

    async def by_token(self, token_sha256: bytes) -> Administrator | None:
        """Return whose token has this digest, or None."""
        statement = select(Administrator).where(Administrator.token_sha256 == token_sha256)
        return (await self._session.exec(statement)).one_or_none()

    async def owners_for_change(self) -> Sequence[Administrator]:
        """Return all owners, and keep others from removing any of them until this transaction ends."""
        statement = (
            select(Administrator)
            .where(Administrator.role == Role.OWNER)
            .order_by(col(Administrator.id))
            .with_for_update()
        )
        return (await self._session.exec(statement)).all()
