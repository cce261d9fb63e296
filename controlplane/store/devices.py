"""Devices within one session. They are named by their ids; a name is what a device calls itself."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.domain.devices import DeviceStatus
from controlplane.domain.errors import NotFoundError
from controlplane.store.tables import Device, DeviceSighting

# Any number that no other advisory lock of this database has.
_REGISTRATION_LOCK: Final = 0x746B_6465_7669_6365


class Devices:
    """The devices of one database."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, device_id: str, *, field: str = "id") -> Device:
        """Return the device of that id.

        Raises:
            NotFoundError: There is none; names `field` of the request.
        """
        return _found(await self._session.get(Device, device_id), device_id, field)

    async def get_for_change(self, device_id: str, *, field: str = "id") -> Device:
        """Return the device of that id and keep others from changing it until this transaction ends.

        Raises:
            NotFoundError: There is none; names `field` of the request.
        """
        row = await self._session.get(
            Device, device_id, with_for_update=True, populate_existing=True
        )
        return _found(row, device_id, field)

    async def page(
        self,
        *,
        after: str,
        size: int,
        now: datetime,
        status: DeviceStatus | None = None,
        user_id: str | None = None,
    ) -> list[Device]:
        """Return at most `size` devices in the order of their ids, from the first one behind `after`.

        Args:
            after: An id, or nothing for the beginning.
            size: At least 1.
            now: The instant at which they stand where `status` says.
            status: Only those that stand there; None does not choose.
            user_id: Only those of this user; None does not choose.
        """
        statement = select(Device).where(Device.id > after).order_by(col(Device.id)).limit(size)
        if status is not None:
            statement = statement.where(_stands(status, now))
        if user_id is not None:
            statement = statement.where(Device.user_id == user_id)
        return list((await self._session.exec(statement)).all())

    async def where(self, **columns: str) -> list[Device]:
        """Return every device whose columns hold these values, by id."""
        statement = select(Device).order_by(col(Device.id))
        for column, value in columns.items():
            statement = statement.where(getattr(Device, column) == value)
        return list((await self._session.exec(statement)).all())

    # ── Those that wait for approval ─────────────────────────────────────────────────────────

    async def hold_registrations(self) -> None:
        """Keep other transactions from registering devices until this one ends, so that what is counted stays true.

        SQLite has one writer at a time anyway. Nothing else waits for this lock, and it is taken first.
        """
        if self._session.get_bind().dialect.name == "postgresql":
            await self._session.exec(select(func.pg_advisory_xact_lock(_REGISTRATION_LOCK)))

    async def pending_count(self, *, address_prefix: str | None = None) -> int:
        """Return how many devices wait for approval, of all or of one address prefix."""
        statement = (
            select(func.count())
            .select_from(Device)
            .where(Device.status == DeviceStatus.PENDING_APPROVAL)
        )
        if address_prefix is not None:
            statement = statement.where(Device.address_prefix == address_prefix)
        return int((await self._session.exec(statement)).one())

    async def pending_since(self, instant: datetime, *, at_most: int) -> list[Device]:
        """Return devices that have waited since `instant` or longer, for change, the oldest first."""
        statement = (
            select(Device)
            .where(
                Device.status == DeviceStatus.PENDING_APPROVAL,
                col(Device.created_at) <= instant,
            )
            .order_by(col(Device.created_at), col(Device.id))
            .limit(at_most)
            .with_for_update()
        )
        return list((await self._session.exec(statement)).all())

    # ── With what they were seen ─────────────────────────────────────────────────────────────

    async def forget_sightings(self, device_ids: Collection[str]) -> None:
        """Remove what is known of devices that are deleted."""
        if device_ids:
            statement: Any = delete(DeviceSighting).where(  # Any: a statement without rows
                col(DeviceSighting.device_id).in_(device_ids)
            )
            await self._session.exec(statement)


def _stands(status: DeviceStatus, now: datetime) -> ColumnElement[bool]:
    """Return the condition that a device stands at `status` at `now`: `domain.devices.status_at` in SQL."""
    is_as_set = col(Device.status) == status
    until = col(Device.suspended_until)
    match status:
        case DeviceStatus.SUSPENDED:
            return and_(is_as_set, or_(until.is_(None), until > now))
        case DeviceStatus.APPROVED:
            is_lifted = and_(col(Device.status) == DeviceStatus.SUSPENDED, until <= now)
            return or_(is_as_set, is_lifted)
        case _:
            return is_as_set


def _found(row: Device | None, device_id: str, field: str) -> Device:
    if row is None:
        raise NotFoundError(f"there is no device {device_id[:200]}", field=field)
    return row
