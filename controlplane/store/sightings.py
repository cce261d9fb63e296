"""With what devices were last seen: kept beside the configuration, without a revision.

Any number of control planes may be told of the same sightings in any order: the newest stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Table, case
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from controlplane.store.tables import Device, DeviceSighting

SIGHTINGS: Final[Table] = DeviceSighting.metadata.tables["device_sightings"]

# What a device does not say stays as it was known; the rest is as it was seen last.
_KEPT_WHEN_EMPTY: Final = frozenset({"platform", "version"})


async def record(session: AsyncSession, sightings: Sequence[Mapping[str, Any]]) -> None:
    """Keep what is newer than what is known of a device; what is about no device is dropped.

    Args:
        session: From `Store.ledger()`.
        sightings: Each holds a value for every column of `DeviceSighting`; few enough for one statement, as in a
            batch of usage.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for sighting in sorted(sightings, key=lambda each: each["seen_at"]):
        newest[sighting["device_id"]] = sighting
    if not newest:
        return
    known = await session.exec(select(Device.id).where(col(Device.id).in_(newest)))
    # In one order everywhere, so that two batches cannot wait for each other.
    rows = [dict(newest[device_id]) for device_id in sorted(known.all())]
    if rows:
        connection = await session.connection()
        await connection.execute(_keep_newest(connection.dialect.name), rows)


async def of(session: AsyncSession, device_ids: Sequence[str]) -> dict[str, DeviceSighting]:
    """Return the last sighting of each of these devices, by device id; one that was never seen has none."""
    statement = select(DeviceSighting).where(col(DeviceSighting.device_id).in_(set(device_ids)))
    return {row.device_id: row for row in (await session.exec(statement)).all()}


def _keep_newest(dialect_name: str) -> Any:  # Any: the two dialects share no type of Insert
    insert: Any = postgresql.insert if dialect_name == "postgresql" else sqlite.insert
    statement = insert(SIGHTINGS)
    given = statement.excluded
    values = {
        column.name: case((given[column.name] == "", column), else_=given[column.name])
        if column.name in _KEPT_WHEN_EMPTY
        else given[column.name]
        for column in SIGHTINGS.columns
        if not column.primary_key
    }
    return statement.on_conflict_do_update(
        index_elements=["device_id"],
        set_=values,
        where=SIGHTINGS.c.seen_at < given.seen_at,
    )
