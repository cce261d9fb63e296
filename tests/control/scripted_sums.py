"""A control plane that says what its ledger has of counters, as a test wants it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from tests.control.ledger import Ledger


class ScriptedSums(Ledger):
    """Answers from `amounts`, `batches_of_sums`, `stored` and `node_ids`.

    A closed `gate` holds every answer back; a `refusal` ends calls with its code, a list of sums
    after its first `refuse_after` batches; from the batch `holds_from` on a list falls silent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.amounts: dict[str, int] = {}
        self.batches_of_sums: list[pb.ListSumsResponse] = []
        self.stored: set[str] = set()
        self.node_ids: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: grpc.StatusCode | None = None
        self.refuse_after = 0
        self.holds_from: int | None = None
        self.asked: list[Any] = []
        self.peers: set[str] = set()

    async def SumUsage(  # noqa: N802 - named by the contract
        self, request: pb.SumUsageRequest, context: Any
    ) -> pb.SumUsageResponse:
        await self._note(request, context)
        amounts = [self.amounts.get(each.subject_id, 0) for each in request.counters]
        return pb.SumUsageResponse(amounts=amounts)

    async def ListSums(  # noqa: N802 - as above
        self, request: pb.ListSumsRequest, context: Any
    ) -> AsyncIterator[pb.ListSumsResponse]:
        refusal, self.refusal = self.refusal, None
        await self._note(request, context)
        for number, batch in enumerate(self.batches_of_sums):
            if refusal is not None and number >= self.refuse_after:
                await context.abort(refusal, "as the test wants it")
            if self.holds_from is not None and number >= self.holds_from:
                await asyncio.Event().wait()
            yield batch

    async def FindRecords(  # noqa: N802 - as above
        self, request: pb.FindRecordsRequest, context: Any
    ) -> pb.FindRecordsResponse:
        await self._note(request, context)
        return pb.FindRecordsResponse(
            request_ids=[each for each in request.request_ids if each in self.stored]
        )

    async def ListReporters(  # noqa: N802 - as above
        self, request: pb.ListReportersRequest, context: Any
    ) -> pb.ListReportersResponse:
        await self._note(request, context)
        return pb.ListReportersResponse(node_ids=self.node_ids)

    async def _note(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        self.peers.add(context.peer())
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.add(str(metadata.get("authorization")))
        await self.gate.wait()
        if self.refusal is not None:
            await context.abort(self.refusal, "as the test wants it")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()
