"""Rows that have a name: finding, adding and paging them."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Mapped
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.errors import AlreadyExistsError, NotFoundError
from controlplane.store.tables import ConfigurationRow

RowT = TypeVar("RowT", bound=ConfigurationRow)


class NamedRows(Generic[RowT]):
    """The rows of one table of named things, within one session."""

    def __init__(self, session: AsyncSession, table: type[RowT], noun: str) -> None:
        """Work on `table`; `noun` is the word for its rows in messages."""
        self._session = session
        self._table = table
        self._noun = noun

    async def find(self, name: str) -> RowT | None:
        """Return the row of that name, or None."""
        statement = select(self._table).where(self._name == name)
        return (await self._session.exec(statement)).one_or_none()

    async def get(self, name: str, *, field: str = "name") -> RowT:
        """Return the row of that name.

        Raises:
            NotFoundError: There is none; names `field` of the request.
        """
        return self._found(await self.find(name), name, field)

    async def get_for_change(self, name: str, *, field: str = "name") -> RowT:
        """Return the row of that name and keep others from changing it until this transaction ends.

        Raises:
            NotFoundError: There is none.
        """
        # populate_existing: the row may have changed since this session saw it without the lock.
        statement = (
            select(self._table)
            .where(self._name == name)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        return self._found((await self._session.exec(statement)).one_or_none(), name, field)

    async def named(self, row_id: str) -> RowT:
        """Return the row of that id, to which another row refers.

        Raises:
            NotFoundError: There is none; foreign keys do not let that happen.
        """
        return self._found(await self._session.get(self._table, row_id), row_id, "")

    async def by_ids(self, row_ids: Sequence[str]) -> dict[str, RowT]:
        """Return the rows of these ids, by id."""
        statement = select(self._table).where(col(self._table.id).in_(set(row_ids)))
        return {row.id: row for row in (await self._session.exec(statement)).all()}

    async def add(self, row: RowT) -> None:
        """Insert a row.

        Raises:
            AlreadyExistsError: Its name is taken.
        """
        name = self._name_of(row)
        if await self.find(name) is not None:
            raise AlreadyExistsError(f"{self._noun} {name} exists already", field="name")
        self._session.add(row)
        await self._session.flush()

    async def page(
        self, *, after: str, size: int, below: str = "", **where: str | None
    ) -> list[RowT]:
        """Return at most `size` rows in the order of their names, from the first one behind `after`.

        Args:
            after: A name, or nothing for the beginning.
            size: At least 1.
            below: Only names below this path; empty does not choose.
            where: Columns that must hold a value; None does not choose.
        """
        statement = select(self._table).where(self._name > after).order_by(self._name).limit(size)
        if below:
            # "0" is the character after "/": every path below is between the two.
            statement = statement.where(self._name > f"{below}/", self._name < f"{below}0")
        for column, value in where.items():
            if value is not None:
                statement = statement.where(getattr(self._table, column) == value)
        return list((await self._session.exec(statement)).all())

    async def where(self, **columns: str) -> list[RowT]:
        """Return every row whose columns hold these values, in the order of their names."""
        statement = select(self._table).order_by(self._name)
        for column, value in columns.items():
            statement = statement.where(getattr(self._table, column) == value)
        return list((await self._session.exec(statement)).all())

    @property
    def _name(self) -> Mapped[str]:
        named: Any = (
            self._table
        )  # Any: every table that is used here has a name, which no base class says
        return col(named.name)

    @staticmethod
    def _name_of(row: Any) -> str:  # Any: as above
        return str(row.name)

    def _found(self, row: RowT | None, name: str, field: str) -> RowT:
        if row is None:
            raise NotFoundError(f"there is no {self._noun} {name[:200]}", field=field)
        return row
