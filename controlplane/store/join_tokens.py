"""Join tokens: made by administrators, used once. Only the digest of the secret is here."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.database import Store
from controlplane.store.fleet_tables import JoinToken

REPETITION: Final = timedelta(minutes=10)
"""For so long the answer to the request that used a token is given again."""

MAX_TOKENS: Final = 1_000
"""As many may wait to be used; more would be a script that went wrong."""


class JoinTokens:
    """The join tokens within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def open(self, now: datetime) -> Sequence[JoinToken]:
        """Return those that can be used at `now`, oldest first."""
        statement = (
            select(JoinToken)
            .where(col(JoinToken.used_at).is_(None), col(JoinToken.expires_at) > now)
            .order_by(col(JoinToken.created_at), col(JoinToken.id))
        )
        return (await self._session.exec(statement)).all()

    async def add(self, token: JoinToken) -> None:
        """Insert a token."""
        self._session.add(token)
        await self._session.flush()

    async def by_secret(self, secret_sha256: bytes) -> JoinToken | None:
        """Return the token whose secret has this digest, used or not, or None."""
        statement = (
            select(JoinToken)
            .where(JoinToken.secret_sha256 == secret_sha256)
            .execution_options(populate_existing=True)
        )
        return (await self._session.exec(statement)).one_or_none()

    async def use(self, token_id: str, now: datetime, *, request_sha256: bytes) -> bool:
        """Use a token up for a request; False when it was used or has expired. Of several at once one is first."""
        statement = (
            update(JoinToken)
            .where(
                col(JoinToken.id) == token_id,
                col(JoinToken.used_at).is_(None),
                col(JoinToken.expires_at) > now,
            )
            .values(used_at=now, request_sha256=request_sha256)
        )
        return bool((await self._session.exec(statement)).rowcount)

    async def keep_answer(self, token_id: str, answer: bytes) -> None:
        """Keep what its use was answered, for a repetition."""
        statement = update(JoinToken).where(col(JoinToken.id) == token_id).values(answer=answer)
        await self._session.exec(statement)

    async def remove(self, token_id: str, now: datetime) -> bool:
        """Delete a token that can be used at `now`; say whether there was one."""
        statement = delete(JoinToken).where(
            col(JoinToken.id) == token_id,
            col(JoinToken.used_at).is_(None),
            col(JoinToken.expires_at) > now,
        )
        return bool((await self._session.exec(statement)).rowcount)

    async def forget_old(self, now: datetime) -> None:
        """Delete those that expired or were used so long ago that no repetition is answered."""
        old = now - REPETITION
        await self._session.exec(delete(JoinToken).where(col(JoinToken.used_at) <= old))
        unused = col(JoinToken.used_at).is_(None)
        await self._session.exec(delete(JoinToken).where(unused, col(JoinToken.expires_at) <= old))


async def forget_old_tokens(store: Store) -> None:
    """Delete what no repetition asks for any more. To be called now and then; a repetition is harmless."""
    async with store.ledger() as session:
        await JoinTokens(session).forget_old(store.clock())
