"""A control plane that says what a user used, as a test wants it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Self

import grpc
import grpc.aio
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from tests.control.ledger import UnaskedLedger

NODE_TOKEN = "node-token-that-is-long-enough-for-anybody"
_Context = grpc.aio.ServicerContext[pb.GetUserUsageRequest, pb.UserUsage]


class ScriptedLedger(UnaskedLedger):
    """Answers `usage`; a closed `gate` holds answers back, a `refusal` ends calls with its code."""

    def __init__(self) -> None:
        self.usage = pb.UserUsage()
        self.refusal: grpc.StatusCode | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[pb.GetUserUsageRequest] = []
        self.tokens: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def ReportUsage(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[pb.ReportUsageRequest],
        context: grpc.aio.ServicerContext[pb.ReportUsageRequest, pb.ReportUsageResponse],
    ) -> AsyncIterator[pb.ReportUsageResponse]:
        async for request in request_iterator:
            yield pb.ReportUsageResponse(batch_id=request.batch_id)

    async def GetUserUsage(  # noqa: N802 - named by the contract
        self, request: pb.GetUserUsageRequest, context: _Context
    ) -> pb.UserUsage:
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.add(str(metadata.get("authorization")))
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.refusal is not None:
            await context.abort(self.refusal, "as the test wants it")
        return self.usage

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        pb_grpc.add_UsageServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def die(self) -> None:
        """End at once, with all that is open."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()
