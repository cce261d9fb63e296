"""A control plane's ledger, as far as whoever reports usage sees it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[pb.ReportUsageRequest, pb.ReportUsageResponse]
Answer = Callable[[pb.ReportUsageRequest, Context], Awaitable[bool]]


async def take(_request: pb.ReportUsageRequest, _context: Context) -> bool:
    """Acknowledge."""
    return True


class UnaskedLedger(pb_grpc.UsageServiceServicer):
    """Answers none of the questions."""

    async def GetUserUsage(  # noqa: N802 - named by the contract
        self, request: pb.GetUserUsageRequest, context: Any
    ) -> pb.UserUsage:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks")
        return pb.UserUsage()

    async def SumUsage(  # noqa: N802 - as above
        self, request: pb.SumUsageRequest, context: Any
    ) -> pb.SumUsageResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks")
        return pb.SumUsageResponse()

    async def ListSums(  # noqa: N802 - as above
        self, request: pb.ListSumsRequest, context: Any
    ) -> AsyncIterator[pb.ListSumsResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks")
        yield pb.ListSumsResponse()

    async def FindRecords(  # noqa: N802 - as above
        self, request: pb.FindRecordsRequest, context: Any
    ) -> pb.FindRecordsResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks")
        return pb.FindRecordsResponse()

    async def ListReporters(  # noqa: N802 - as above
        self, request: pb.ListReportersRequest, context: Any
    ) -> pb.ListReportersResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody asks")
        return pb.ListReportersResponse()


class Ledger(UnaskedLedger):
    """A control plane whose answers a test chooses: acknowledge, stay silent, or end the stream."""

    def __init__(self) -> None:
        self.answer: Answer = take
        self.batches: list[pb.ReportUsageRequest] = []
        self.taken: list[str] = []
        self.tokens: set[str] = set()
        self.streams = 0
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def ReportUsage(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[pb.ReportUsageRequest], context: Context
    ) -> AsyncIterator[pb.ReportUsageResponse]:
        self.streams += 1
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.add(str(metadata.get("authorization")))
        async for request in request_iterator:
            self.batches.append(request)
            if await self.answer(request, context):
                self.taken += [record.request_id for record in request.records]
                yield pb.ReportUsageResponse(batch_id=request.batch_id)

    async def start(self) -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        pb_grpc.add_UsageServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def die(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)
