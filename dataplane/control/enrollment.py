"""Registers devices with the control plane, on behalf of clients that nobody knows yet.

A registration is sent once. Whether one that failed has taken effect cannot be told, and a second
one would add a second device; so another address is tried only where no connection came about, as
seen before anything is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.common.v1 import devices_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as pb_grpc

from dataplane.control.channels import LOOPBACK, ChannelCache, Channels, credentials_of
from dataplane.control.enrollment_refusals import refusal_for, unavailable
from dataplane.domain.principals import DeviceStatus
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.registration import Registration

# A control plane answers a second after its data planes stopped following, at the latest.
DEADLINE_SECONDS: Final = 5.0
# The control plane writes one after the other; more at once would only wait there, before others.
MAX_AT_A_TIME: Final = 5
# As many as the throttle lets through at once; they are through within two seconds.
MAX_WAITING: Final = 100

# More than a channel that has just failed waits before it tries again (`channels`).
_CONNECT_SECONDS: Final = 1.5
_OVERLOADED_RETRY_SECONDS: Final = 1
_STATUS_PREFIX: Final = "DEVICE_STATUS_"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """A new device and its credential, which nobody but its client gets to see."""

    device_id: str
    session_token: str = field(repr=False)
    status: DeviceStatus


class Enrollment:
    """The way of a process to the control plane's enrollment; make it on the event loop.

    Channels are opened when they are first needed, one per address.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        node_token: str,
        node_id: str,
        deadline_seconds: float = DEADLINE_SECONDS,
        channels: Channels = LOOPBACK,
    ) -> None:
        """Prepare; nothing is opened yet.

        Raises:
            ValueError: An address cannot be used, or there is none.
        """
        if not addresses:
            raise ValueError("enrollment needs the address of a control plane")
        for address in addresses:
            channels.check(address)
        self._addresses = tuple(addresses)
        self._metadata = credentials_of(node_token)
        self._node_id = node_id
        self._deadline_seconds = deadline_seconds
        self._channels = ChannelCache(channels)
        self._turn = 0
        self._under_way = 0
        self._turns = asyncio.Semaphore(MAX_AT_A_TIME)
        self._is_closed = False

    async def register(self, registration: Registration) -> Registered:
        """Add a device that waits for approval; ends within the deadline.

        Cancelling it may leave a device that nobody can use; it is forgotten after days.

        Raises:
            Refusal: CONTROL_PLANE_UNAVAILABLE, OVERLOADED when too many are under way,
                RATE_LIMIT_EXCEEDED when too many devices wait, INVALID_REQUEST.
        """
        if self._under_way >= MAX_AT_A_TIME + MAX_WAITING:
            raise _overloaded()
        ends = asyncio.get_running_loop().time() + self._deadline_seconds
        self._under_way += 1
        try:
            async with self._turn_before(ends):
                return await self._register(registration, ends)
        finally:
            self._under_way -= 1

    async def aclose(self) -> None:
        """Close the channels; registrations under way are refused."""
        self._is_closed = True
        await self._channels.aclose()

    @asynccontextmanager
    async def _turn_before(self, ends: float) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            Refusal: OVERLOADED, when it did not come in time.
        """
        try:
            async with asyncio.timeout_at(ends):
                await self._turns.acquire()
        except TimeoutError as error:
            raise _overloaded() from error
        try:
            yield
        finally:
            self._turns.release()

    async def _register(self, registration: Registration, ends: float) -> Registered:
        turn, channel = await self._connected(ends)
        call = pb_grpc.DeviceEnrollmentServiceStub(channel).RegisterDevice(
            _request_of(registration, self._node_id),
            metadata=self._metadata,
            timeout=max(0.0, ends - asyncio.get_running_loop().time()),
        )
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAVAILABLE:
                # Nothing of this call is sent again; the next one begins with another address.
                self._turn = turn + 1
            _log.warning("registration_failed", code=code.name, detail=error.details())
            raise refusal_for(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_closed or (task is not None and task.cancelling()):
                raise
            # The channel was closed under the call; nobody has cancelled its caller.
            raise unavailable() from None
        return Registered(response.device_id, response.session_token, _status_of(response.status))

    async def _connected(self, ends: float) -> tuple[int, grpc.aio.Channel]:
        """Return a channel that is connected, and whose turn it was; nothing was sent on it.

        Raises:
            Refusal: CONTROL_PLANE_UNAVAILABLE, when none could be connected in time.
        """
        for turn in range(self._turn, self._turn + len(self._addresses)):
            if self._is_closed:
                break
            address = self._addresses[turn % len(self._addresses)]
            channel = self._channels.to(address)
            left = ends - asyncio.get_running_loop().time()
            if await _connects(channel, min(_CONNECT_SECONDS, left)):
                self._turn = turn
                return turn, channel
            _log.warning("enrollment_not_connected", address=address)
        raise unavailable()


async def _connects(channel: grpc.aio.Channel, seconds: float) -> bool:
    """Connect, unless that was done before; tell whether it worked.

    A channel that has just failed waits a moment before it tries again; that is waited for.
    """
    try:
        async with asyncio.timeout(seconds):
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
    except (TimeoutError, grpc.aio.UsageError):
        # The latter: it was closed meanwhile.
        return False
    return True


def _request_of(registration: Registration, node_id: str) -> pb.RegisterDeviceRequest:
    return pb.RegisterDeviceRequest(
        node_id=node_id,
        device_name=registration.device_name,
        platform=registration.platform,
        version=registration.version,
        address=registration.address,
        address_prefix=registration.address_prefix,
        user_agent=registration.user_agent,
    )


def _status_of(status: devices_pb2.DeviceStatus.ValueType) -> DeviceStatus:
    """Return a status in the words that callers see; one of a newer control plane is unknown."""
    try:
        name = devices_pb2.DeviceStatus.Name(status)
        return DeviceStatus(name.removeprefix(_STATUS_PREFIX).lower())
    except ValueError:
        return DeviceStatus.UNKNOWN


def _overloaded() -> Refusal:
    return Refusal(
        Reason.OVERLOADED,
        "Too many devices are being registered at this moment.",
        retry_after_seconds=_OVERLOADED_RETRY_SECONDS,
    )
