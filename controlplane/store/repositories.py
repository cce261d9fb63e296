"""All repositories of one session."""

from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.administrators import Administrators
from controlplane.store.devices import Devices
from controlplane.store.prices import Prices
from controlplane.store.rows import NamedRows
from controlplane.store.rules import Rules
from controlplane.store.shareables import Shareables
from controlplane.store.subject_limits import SubjectLimitRows
from controlplane.store.tables import (
    ApiKey,
    Credential,
    Organization,
    Provider,
    Router,
    Tier,
    User,
)


class Repositories:
    """One repository per noun, on one session, to read with (`Store.reading`) or to change with (a transaction)."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.organizations = NamedRows(session, Organization, "organization")
        self.users = NamedRows(session, User, "user")
        self.api_keys = NamedRows(session, ApiKey, "key")
        self.providers = Shareables(session, Provider, "provider")
        self.credentials = NamedRows(session, Credential, "credential")
        self.routers = Shareables(session, Router, "router")
        self.rules = Rules(session)
        self.limits = SubjectLimitRows(session)
        self.prices = Prices(session)
        self.administrators = Administrators(session)
        self.devices = Devices(session)
        self.tiers = NamedRows(session, Tier, "tier")

    async def organization_of(self, row: Provider | Router | User) -> Organization | None:
        """Return the organization that owns a row; None when it is shared."""
        if row.organization_id is None:
            return None
        return await self.organizations.named(row.organization_id)

    async def organization_id(self, name: str, *, field: str = "organization") -> str | None:
        """Return the id of the organization of that name; None when there is no name.

        Raises:
            NotFoundError: There is no such organization; names `field` of the request.
        """
        return (await self.organizations.get(name, field=field)).id if name else None
