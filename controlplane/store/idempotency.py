"""The first answer to a request id, kept for a day."""

from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import InvalidError
from controlplane.store.tables import IdempotentAnswer
from controlplane.store.transactions import Transaction

ANSWER_LIFETIME: Final = timedelta(hours=24)


class Idempotency:
    """One request id within one transaction.

    The id is claimed by inserting its row first. A second call with the same id waits for that row (PostgreSQL) or for
    its turn to write (SQLite) and then finds the first one's answer. A call that fails leaves no row.
    """

    def __init__(self, tx: Transaction, request_id: str, request_sha256: bytes) -> None:
        """Work for one call; `request_sha256` tells whether a repetition asks for the same."""
        self._tx = tx
        self._request_id = request_id
        self._request_sha256 = request_sha256

    async def replay(self) -> bytes | None:
        """Claim the id, or return the answer to the call that claimed it before.

        Raises:
            InvalidError: The id was used for another request.
        """
        await self._forget_if_expired()
        if await self._claim():
            return None
        statement = select(IdempotentAnswer).where(*self._this())
        kept = (await self._tx.session.exec(statement)).one()
        if kept.request_sha256 != self._request_sha256:
            raise InvalidError("this id was used for another request", field="request_id")
        return kept.response

    async def keep(self, response: bytes) -> None:
        """Keep the answer, which holds no secret, with the change that it is about."""
        statement = update(IdempotentAnswer).where(*self._this()).values(response=response)
        await self._tx.session.exec(statement)

    async def _forget_if_expired(self) -> None:
        expired = col(IdempotentAnswer.expires_at) <= self._tx.now
        await self._tx.session.exec(delete(IdempotentAnswer).where(*self._this(), expired))

    async def _claim(self) -> bool:
        values = {
            "actor": self._tx.actor,
            "rpc": self._tx.rpc_name,
            "request_id": self._request_id,
            "request_sha256": self._request_sha256,
            "response": b"",
            "expires_at": self._tx.now + ANSWER_LIFETIME,
        }
        insert = _insert(self._tx.session)(IdempotentAnswer).values(values)
        claimed = await self._tx.session.exec(insert.on_conflict_do_nothing())
        return bool(claimed.rowcount)

    def _this(self) -> tuple[ColumnElement[bool], ...]:
        return (
            col(IdempotentAnswer.actor) == self._tx.actor,
            col(IdempotentAnswer.rpc) == self._tx.rpc_name,
            col(IdempotentAnswer.request_id) == self._request_id,
        )


def _insert(session: AsyncSession):  # type: ignore[no-untyped-def]  # two classes with one method
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return sqlite.insert if is_sqlite else postgresql.insert
