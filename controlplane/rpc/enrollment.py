"""The registration of devices, by data planes on their behalf."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from tollkeeper.common.v1 import devices_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as pb_grpc

from controlplane.domain.devices import DeviceStatus, check_room, check_said, without_controls
from controlplane.domain.errors import OverloadedError
from controlplane.domain.keys import SECRET_BYTES, mint_session_token, sha256_of
from controlplane.domain.names import RandomBelow, new_id
from controlplane.rpc.interception import Context
from controlplane.rpc.redaction import audited
from controlplane.snapshots.fleet import Fleet
from controlplane.store.database import Store
from controlplane.store.tables import Device
from controlplane.store.transactions import Transaction

# The answer waits so long for the data planes: a client that calls with its new token is known by then.
KNOWN_WITHIN_MS: Final = 1_000

# 5 s: as long as a data plane waits for its answer.
TURN_WAIT_S: Final = 5.0


class DeviceEnrollmentServicer(pb_grpc.DeviceEnrollmentServiceServicer):
    """Serves DeviceEnrollmentService."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        random_below: RandomBelow = secrets.randbelow,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._random_below = random_below
        self._random_bytes = random_bytes
        self._turn = asyncio.Lock()

    async def RegisterDevice(
        self, request: pb.RegisterDeviceRequest, _context: Context
    ) -> pb.RegisterDeviceResponse:
        """Add a device that waits for approval and show its token, this once."""
        for field in ("device_name", "platform", "version"):
            check_said(getattr(request, field), field=field)
        token = mint_session_token(self._random_bytes(SECRET_BYTES))
        actor = f"node:{request.node_id}"
        async with self._one_at_a_time(), self._store.transaction(actor, "RegisterDevice") as tx:
            row = await self._registered(tx, request, sha256_of(token))
        await self._fleet.applied_everywhere(tx.revision, within_ms=KNOWN_WITHIN_MS)
        return pb.RegisterDeviceResponse(
            device_id=row.id,
            session_token=token,
            status=devices_pb2.DEVICE_STATUS_PENDING_APPROVAL,
            revision=tx.revision,
        )

    async def _registered(
        self, tx: Transaction, request: pb.RegisterDeviceRequest, token_sha256: bytes
    ) -> Device:
        await tx.devices.hold_registrations()
        check_room(
            waiting=await tx.devices.pending_count(),
            waiting_of_address=await tx.devices.pending_count(
                address_prefix=request.address_prefix
            ),
        )
        row = Device(
            id=new_id(self._random_below),
            name=request.device_name,
            token_sha256=token_sha256,
            status=DeviceStatus.PENDING_APPROVAL,
            platform=request.platform,
            version=request.version,
            address=request.address,
            address_prefix=request.address_prefix,
            user_agent=without_controls(request.user_agent),
            created_at=tx.now,
            updated_at=tx.now,
        )
        tx.describe(row.id, audited(request))
        tx.add(row)
        return row

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """Keep registrations in a queue of their own: in the database's they would hold every connection.

        Raises:
            OverloadedError: Too many are before this one.
        """
        try:
            async with asyncio.timeout(TURN_WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise OverloadedError("too many devices register at once; try again later") from None
        try:
            yield
        finally:
            self._turn.release()
