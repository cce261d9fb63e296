"""Providers and routers: owned by an organization, or shared by all."""

from typing import TypeVar

from controlplane.domain.errors import NotFoundError
from controlplane.domain.names import candidates
from controlplane.domain.routing import may_use
from controlplane.store.rows import NamedRows
from controlplane.store.tables import Organization, Provider, Router

ShareableT = TypeVar("ShareableT", Provider, Router)


class Shareables(NamedRows[ShareableT]):
    """Rows that an organization owns or that all share."""

    async def resolve(self, name: str, context: Organization | None, *, field: str) -> ShareableT:
        """Return what `name` means to an organization (None: to something that is shared itself).

        A bare name means the organization's own first, then the shared one.

        Raises:
            NotFoundError: There is none, or it belongs to another organization; a caller cannot tell which.
        """
        for candidate in candidates(name, context.name if context else ""):
            row = await self.find(candidate)
            if row and may_use(row.organization_id, context.id if context else None):
                return row
        raise NotFoundError(f"there is no {self._noun} {name[:200]} here", field=field)
