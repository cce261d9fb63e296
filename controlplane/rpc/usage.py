"""`usage.v1.UsageService`: data planes deliver what requests used, and ask what was used."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc
import grpc.aio
import structlog
from sqlalchemy.exc import DataError, SQLAlchemyError
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.interception import Context
from controlplane.rpc.usage_budget_events import rows_from_budget_events
from controlplane.rpc.usage_records import InvalidRecordError, row_from_record
from controlplane.rpc.usage_sightings import rows_from_sightings
from controlplane.rpc.usage_sums import UsageSumServicer
from controlplane.snapshots.fleet import Fleet
from controlplane.store import budget_events, ledger, sightings
from controlplane.store.database import Store

MAX_BATCH_RECORDS: Final = 500

# Longer than a queue of writers; a node keeps what was not acknowledged and sends it again.
_COMMIT_DEADLINE_S: Final = 20.0

_log: Final = structlog.get_logger(__name__)


class UsageReportServicer(UsageSumServicer):
    """Takes batches into the ledger, one commit each, and answers questions to it.

    A stream has one batch in work; the others wait in the flow control of the connection.
    """

    def __init__(self, store: Store, fleet: Fleet) -> None:
        super().__init__(store)
        self._fleet = fleet
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every stream after the batch that is in work; its node goes on elsewhere."""
        self._closing.set()

    async def ReportUsage(
        self,
        request_iterator: AsyncIterator[pb.ReportUsageRequest],
        context: grpc.aio.ServicerContext[pb.ReportUsageRequest, pb.ReportUsageResponse],
    ) -> AsyncIterator[pb.ReportUsageResponse]:
        """Store batches in the order of their arrival and acknowledge each after its commit."""
        while (request := await self._next(request_iterator)) is not None:
            try:
                await self._store_batch(request)
            except InvalidRecordError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except DataError:
                # Sending it again would not help: the node must put it aside, loudly.
                _log.exception("usage cannot be stored", node_id=request.node_id)
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "the ledger does not take this batch"
                )
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                _log.error("usage not stored", node_id=request.node_id, error=repr(error))
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the ledger is away")
            yield pb.ReportUsageResponse(batch_id=request.batch_id)
        if self._closing.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane stops")

    async def ListReporters(
        self, _request: pb.ListReportersRequest, _context: Context
    ) -> pb.ListReportersResponse:
        """Return the data planes that are connected to this control plane, by their ids."""
        return pb.ListReportersResponse(
            node_ids=[watcher.node_id for watcher in self._fleet.watchers()]
        )

    async def _next(
        self, requests: AsyncIterator[pb.ReportUsageRequest]
    ) -> pb.ReportUsageRequest | None:
        """Return the next batch; None when the node has no more, or the stream is to end."""

        async def read() -> pb.ReportUsageRequest | None:
            return await anext(requests, None)

        reading = asyncio.create_task(read())
        closing = asyncio.create_task(self._closing.wait())
        try:
            # No deadline: a node with nothing to report keeps its stream.
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            return None if closing.done() else reading.result()
        finally:
            reading.cancel()
            closing.cancel()

    async def _store_batch(self, request: pb.ReportUsageRequest) -> None:
        if len(request.records) > MAX_BATCH_RECORDS:
            raise InvalidRecordError(f"a batch has at most {MAX_BATCH_RECORDS} records")
        rows = [row_from_record(record) for record in request.records]
        seen = rows_from_sightings(request.sightings, self._store.clock())
        reached = rows_from_budget_events(request.budget_events)
        async with asyncio.timeout(_COMMIT_DEADLINE_S), self._store.ledger() as session:
            await ledger.record(session, rows)
            await sightings.record(session, seen)
            await budget_events.record(session, reached)
