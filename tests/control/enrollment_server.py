"""A control plane that registers devices as a test tells it."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # has none
from tollkeeper.common.v1 import devices_pb2
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[pb.RegisterDeviceRequest, pb.RegisterDeviceResponse]
Act = Callable[[pb.RegisterDeviceRequest, Context], Awaitable[None]]


async def nothing(_request: pb.RegisterDeviceRequest, _context: Context) -> None:
    """Do nothing before the answer."""


def fails(code: grpc.StatusCode, *details: Message, text: str = "no") -> Act:
    """Return what refuses every registration, with these `google.rpc` details."""

    async def act(_request: pb.RegisterDeviceRequest, context: Context) -> None:
        number: int = code.value[0]
        status = Status(code=number, message=text)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        if details:
            header = ("grpc-status-details-bin", status.SerializeToString())
            context.set_trailing_metadata((header,))
        await context.abort(code, text)

    return act


class EnrollmentServer(pb_grpc.DeviceEnrollmentServiceServicer):
    """Registers `d1`, `d2` …; `act` runs before each answer and may refuse it or wait."""

    def __init__(self) -> None:
        self.act: Act = nothing
        self.requests: list[pb.RegisterDeviceRequest] = []
        self.tokens: set[str] = set()
        self.status = devices_pb2.DEVICE_STATUS_PENDING_APPROVAL
        self.under_way = 0
        self.most_under_way = 0
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def RegisterDevice(  # noqa: N802 - named by the contract
        self, request: pb.RegisterDeviceRequest, context: Context
    ) -> pb.RegisterDeviceResponse:
        self.requests.append(request)
        self.tokens.add(str(dict(context.invocation_metadata() or ()).get("authorization")))
        number = len(self.requests)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.act(request, context)
        finally:
            self.under_way -= 1
        return pb.RegisterDeviceResponse(
            device_id=f"d{number}",
            session_token=f"tks_{number}",
            status=self.status,
            revision=number,
        )

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        pb_grpc.add_DeviceEnrollmentServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def die(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)


async def until_waiting(server: EnrollmentServer, count: int) -> None:
    """Wait until so many registrations are under way."""
    async with asyncio.timeout(5):
        while server.under_way < count:
            await asyncio.sleep(0.005)
