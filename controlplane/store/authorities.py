"""The authority of this service: made once, kept in the database with its key sealed under the master key."""

from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.pki.certificates import Authority, AuthorityError
from controlplane.secrets.sealing import Sealer, SealingError, Secret
from controlplane.store import fleet_tables
from controlplane.store.database import Store

AUTHORITY_ID: Final = "between-planes"
# No credential has this id, so a sealed key cannot pass for a credential's secret.
_SEALED_AS: Final = f"authority:{AUTHORITY_ID}"
_VERSION: Final = 1


async def ensure_authority(store: Store, sealer: Sealer) -> Authority:
    """Return the authority of this database, made by the first control plane that asks.

    Raises:
        AuthorityError: It is sealed under another master key, or is damaged.
    """
    async with store.reading() as session:
        row = await _row_in(session)
    if row is None:
        row = await _made(store, sealer)
    try:
        key = sealer.open(_SEALED_AS, _VERSION, row.sealed_key)
    except SealingError:
        raise AuthorityError(
            "the authority's key in the database is sealed under another TOLLKEEPER_MASTER_KEY"
        ) from None
    return Authority.load(row.certificate.encode(), key.reveal())


async def _made(store: Store, sealer: Sealer) -> fleet_tables.Authority:
    """Write a new authority; when another control plane was faster, return that one's."""
    authority = Authority.make(store.clock())
    row = fleet_tables.Authority(
        id=AUTHORITY_ID,
        certificate=authority.certificate_pem.decode(),
        sealed_key=sealer.seal(_SEALED_AS, _VERSION, Secret(authority.key_pem())),
        created_at=store.clock(),
    )
    try:
        async with store.ledger() as session:
            session.add(row)
    except IntegrityError:
        async with store.reading() as session:
            found = await _row_in(session)
        if found is None:
            raise
        return found
    return row


async def _row_in(session: AsyncSession) -> fleet_tables.Authority | None:
    return await session.get(fleet_tables.Authority, AUTHORITY_ID)
