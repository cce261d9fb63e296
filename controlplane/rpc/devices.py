"""Devices: their approval and what may follow. Their session tokens are shown once and kept nowhere."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, device_service_pb2_grpc
from tollkeeper.admin.v1 import device_service_pb2 as pb

from controlplane.domain.devices import (
    DEFAULT_SUSPENSION,
    DeviceAction,
    DeviceStatus,
    check_said,
    next_status,
)
from controlplane.domain.errors import PreconditionError
from controlplane.domain.keys import SECRET_BYTES, mint_session_token, sha256_of
from controlplane.rpc.actors import current_actor
from controlplane.rpc.changing import AdminServicer, changing, resource_of
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.device_views import shown, shown_changed, status_of
from controlplane.rpc.interception import Context
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.propagation import (
    receipt_to_proto,
    revocation_wait_ms,
    without_waiting,
)
from controlplane.rpc.redaction import audited
from controlplane.rpc.resources import check_etag
from controlplane.rpc.revocations import REVOCABLE, keep_revocation
from controlplane.rpc.tiers import check_tier
from controlplane.store.repositories import Repositories
from controlplane.store.tables import Device, Router, User
from controlplane.store.transactions import Transaction

DEFAULT_ROUTER: Final = "default"

_CHANGEABLE: Final = frozenset({"name", "router", "allowed_models", "tier"})
# What an approval says; before it there is nothing to change.
_SAID_BY_APPROVAL: Final = _CHANGEABLE - {"name"}


class DeviceServicer(AdminServicer, device_service_pb2_grpc.DeviceServiceServicer):
    """Serves DeviceService."""

    async def GetDevice(self, request: pb.GetDeviceRequest, _context: Context) -> pb.Device:
        """Return a device."""
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            row = await repositories.devices.get(request.id)
            [show] = await shown(repositories, [row], self.backend.clock())
        return show()

    async def ListDevices(
        self, request: pb.ListDevicesRequest, _context: Context
    ) -> pb.ListDevicesResponse:
        """Return a page of devices; where they stand is decided at one instant."""
        page, now = page_of(request), self.backend.clock()
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            user = request.user and (await repositories.users.get(request.user, field="user")).id
            rows = await repositories.devices.page(
                after=page.after_name,
                size=page.fetch,
                now=now,
                status=DeviceStatus(request.status) if request.status else None,
                user_id=user or None,
            )
            shows = await shown(repositories, page.cut(rows), now)
        return pb.ListDevicesResponse(
            devices=[show() for show in shows], next_page_token=page.next_token(rows, "id")
        )

    @changing(pb.Device)
    async def ApproveDevice(
        self, tx: Transaction, request: pb.ApproveDeviceRequest
    ) -> Callable[[], pb.Device]:
        """Give a device to a user."""
        row = await tx.devices.get_for_change(request.id)
        _apply(row, DeviceAction.APPROVE, tx.now)
        user = await tx.users.get(request.user, field="user")
        row.user_id = user.id
        row.router_id = (await _router(tx, user, request.router, field="router")).id
        await check_tier(tx, request.tier, field="tier")
        row.tier = request.tier
        row.allowed_models = list(request.allowed_models)
        row.approved_by, row.approved_at = tx.actor, tx.now
        return await shown_changed(tx, row)

    @changing(pb.Device)
    async def RejectDevice(
        self, tx: Transaction, request: pb.RejectDeviceRequest
    ) -> Callable[[], pb.Device]:
        """Say no to a device that waits."""
        row = await tx.devices.get_for_change(request.id)
        _apply(row, DeviceAction.REJECT, tx.now)
        return await shown_changed(tx, row)

    @changing(pb.Device)
    async def SuspendDevice(
        self, tx: Transaction, request: pb.SuspendDeviceRequest
    ) -> Callable[[], pb.Device]:
        """Refuse a device's calls for a while."""
        row = await tx.devices.get_for_change(request.id)
        _apply(row, DeviceAction.SUSPEND, tx.now)
        is_given = request.HasField("period")
        row.suspended_until = tx.now + (
            request.period.ToTimedelta() if is_given else DEFAULT_SUSPENSION
        )
        row.suspension_reason = request.reason
        return await shown_changed(tx, row)

    @changing(pb.Device)
    async def ResumeDevice(
        self, tx: Transaction, request: pb.ResumeDeviceRequest
    ) -> Callable[[], pb.Device]:
        """End a suspension."""
        row = await tx.devices.get_for_change(request.id)
        _apply(row, DeviceAction.RESUME, tx.now)
        return await shown_changed(tx, row)

    async def RevokeDevice(
        self, request: pb.RevokeDeviceRequest, _context: Context
    ) -> changes_pb2.RevocationReceipt:
        """Take a device out of service for good, and say which data planes obey.

        Repeating it changes nothing and gives a fresh receipt.
        """
        async with self.backend.store.transaction(current_actor().name, "RevokeDevice") as tx:
            tx.describe(resource_of(request), audited(without_waiting(request)))
            row = await tx.devices.get_for_change(request.id)
            if row.status != DeviceStatus.REVOKED:
                _apply(row, DeviceAction.REVOKE, tx.now)
            organization_id = await keep_revocation(
                tx, row, terminate_streams=request.terminate_streams
            )
        receipt = await self.backend.revoker.revoke(
            REVOCABLE[row.KIND],
            row.id,
            row.revision,
            organization_id=organization_id,
            terminate_streams=request.terminate_streams,
            wait_ms=revocation_wait_ms(request),
        )
        return receipt_to_proto(receipt)

    @changing(pb.RotateSessionTokenResponse)
    async def RotateSessionToken(
        self, tx: Transaction, request: pb.RotateSessionTokenRequest
    ) -> Callable[[], pb.RotateSessionTokenResponse]:
        """Replace a session token and show the new one, this once; a dry run and a repetition show none."""
        row = await tx.devices.get_for_change(request.id)
        _apply(row, DeviceAction.ROTATE, tx.now)
        token = mint_session_token(self.backend.random_bytes(SECRET_BYTES))
        row.token_sha256 = sha256_of(token)
        shown_token = "" if request.validate_only else token
        show = await shown_changed(tx, row)
        return lambda: pb.RotateSessionTokenResponse(device=show(), session_token=shown_token)

    @changing(pb.Device)
    async def UpdateDevice(
        self, tx: Transaction, request: pb.UpdateDeviceRequest
    ) -> Callable[[], pb.Device]:
        """Change a device; what its approval says can change from then on."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        given = request.device
        row = await tx.devices.get_for_change(given.id, field="device.id")
        check_etag(row, given)
        if "name" in fields:
            check_said(given.name, field="device.name")
            row.name = given.name
        if _SAID_BY_APPROVAL.intersection(fields):
            user = await _owner(tx, row)
            if "router" in fields:
                row.router_id = (await _router(tx, user, given.router, field="device.router")).id
            if "allowed_models" in fields:
                row.allowed_models = list(given.allowed_models)
            if "tier" in fields:
                await check_tier(tx, given.tier, field="device.tier")
                row.tier = given.tier
        return await shown_changed(tx, row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteDevice(
        self, tx: Transaction, request: pb.DeleteDeviceRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a device with its limits; the data planes are told at once."""
        row = await tx.devices.get_for_change(request.id)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=False)


def _apply(row: Device, action: DeviceAction, now: datetime) -> None:
    """Move a device on; what is said of a suspension goes with it.

    Raises:
        InvalidTransitionError: The action does not apply to where it stands at `now`.
    """
    row.status = next_status(status_of(row, now), action)
    if row.status != DeviceStatus.SUSPENDED:
        row.suspended_until, row.suspension_reason = None, ""


async def _owner(tx: Transaction, row: Device) -> User:
    if row.user_id is None:
        raise PreconditionError("a device gets its router, models and tier with its approval")
    return await tx.users.named(row.user_id)


async def _router(tx: Transaction, user: User, name: str, *, field: str) -> Router:
    organization = await tx.organizations.named(user.organization_id)
    return await tx.routers.resolve(name or DEFAULT_ROUTER, organization, field=field)
