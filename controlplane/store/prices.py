"""Prices of models at providers."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import tuple_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import NotFoundError
from controlplane.store.tables import Price

SINCE_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for a price without a beginning."""


@dataclass(frozen=True, slots=True, order=True)
class PriceKey:
    """What a price is identified by, and the order in which prices are listed."""

    provider: str
    model: str
    effective_from: datetime


class Prices:
    """The prices within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find_for_change(self, key: PriceKey) -> Price | None:
        """Return the price of this identity and keep others from changing it, or None."""
        statement = (
            select(Price)
            .where(
                Price.provider == key.provider,
                Price.model == key.model,
                Price.effective_from == key.effective_from,
            )
            .with_for_update()
        )
        return (await self._session.exec(statement)).one_or_none()

    async def get(self, price_id: str, *, for_change: bool = False) -> Price:
        """Return the price of that id.

        Raises:
            NotFoundError: There is none.
        """
        price = await self._session.get(
            Price, price_id, with_for_update=for_change or None, populate_existing=for_change
        )
        if price is None:
            raise NotFoundError(f"there is no price {price_id[:200]}", field="id")
        return price

    async def page(
        self, *, after: PriceKey | None, size: int, provider: str, model: str
    ) -> list[Price]:
        """Return at most `size` prices by provider, model and beginning, from the first one behind `after`.

        Empty `provider` and `model` do not choose.
        """
        order: tuple[Any, ...] = (  # Any: columns of different types
            col(Price.provider),
            col(Price.model),
            col(Price.effective_from),
        )
        statement = select(Price).order_by(*order).limit(size)
        if after is not None:
            key = (after.provider, after.model, after.effective_from)
            statement = statement.where(tuple_(*order) > key)
        if provider:
            statement = statement.where(Price.provider == provider)
        if model:
            statement = statement.where(Price.model == model)
        return list((await self._session.exec(statement)).all())

    async def of_provider(self, name: str) -> list[Price]:
        """Return the prices of a provider's name."""
        statement = select(Price).where(Price.provider == name).order_by(col(Price.id))
        return list((await self._session.exec(statement)).all())
