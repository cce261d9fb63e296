"""Devices as the admin API shows them: with the names of what they refer to, and with what they were last seen with."""

from collections.abc import Callable, Sequence
from datetime import datetime

from tollkeeper.admin.v1 import device_service_pb2 as pb
from tollkeeper.common.v1 import devices_pb2

from controlplane.domain.devices import DeviceStatus, status_at
from controlplane.rpc.resources import stamps_of, to_timestamp
from controlplane.store import sightings
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Device, DeviceSighting, Router, User
from controlplane.store.transactions import Transaction


def device_to_proto(
    row: Device,
    user: User | None,
    router: Router | None,
    seen: DeviceSighting | None,
    now: datetime,
) -> pb.Device:
    """Return a row as the admin API shows it at `now`, with what the device was last seen with."""
    status = status_of(row, now)
    is_suspended = status is DeviceStatus.SUSPENDED
    until = row.suspended_until if is_suspended else None
    return pb.Device(
        name=row.name,
        status=devices_pb2.DeviceStatus.ValueType(status),
        user=user.name if user else "",
        router=router.name if router else "",
        allowed_models=row.allowed_models,
        tier=row.tier,
        suspended_until=to_timestamp(until) if until else None,
        suspension_reason=row.suspension_reason if is_suspended else "",
        approved_by=row.approved_by,
        approved_at=to_timestamp(row.approved_at) if row.approved_at else None,
        platform=(seen and seen.platform) or row.platform,
        version=(seen and seen.version) or row.version,
        address=(seen and seen.address) or row.address,
        user_agent=seen.user_agent if seen else row.user_agent,
        last_seen_at=to_timestamp(seen.seen_at) if seen else None,
        **stamps_of(row),
    )


def status_of(row: Device, now: datetime) -> DeviceStatus:
    """Return where a device stands at `now`."""
    return status_at(DeviceStatus(row.status), row.suspended_until, now)


async def shown_changed(tx: Transaction, row: Device) -> Callable[[], pb.Device]:
    """Return what shows a changed device, once it carries its revision."""
    [show] = await shown(tx, [row], tx.now)
    return show


async def shown(
    repositories: Repositories, rows: Sequence[Device], now: datetime
) -> list[Callable[[], pb.Device]]:
    """Return what shows each of `rows` as it stands at `now`; to be called once rows carry their revision."""
    users = await repositories.users.by_ids([row.user_id for row in rows if row.user_id])
    routers = await repositories.routers.by_ids([row.router_id for row in rows if row.router_id])
    seen = await sightings.of(repositories.session, [row.id for row in rows])

    def showing(row: Device) -> Callable[[], pb.Device]:
        return lambda: device_to_proto(
            row,
            users.get(row.user_id or ""),
            routers.get(row.router_id or ""),
            seen.get(row.id),
            now,
        )

    return [showing(row) for row in rows]
