"""`usage.v1.UsageService`: data planes deliver what requests used, and ask what a user used."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
import structlog
from sqlalchemy.exc import DataError, SQLAlchemyError
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from controlplane.rpc.usage_records import InvalidRecordError, row_from_record
from controlplane.rpc.usage_sightings import rows_from_sightings
from controlplane.store import ledger, sightings
from controlplane.store.database import Store
from controlplane.store.user_days import UsageTotals

MAX_BATCH_RECORDS: Final = 500

# Longer than a queue of writers; a node keeps what was not acknowledged and sends it again.
_COMMIT_DEADLINE_S: Final = 20.0
# A caller waits for the answer; four sums by index take milliseconds.
_SUMS_DEADLINE_S: Final = 5.0
_LATELY: Final = timedelta(hours=24)

_DAY: Final = re.compile(r"\d{8}", re.ASCII)
_MONTH: Final = re.compile(r"\d{6}", re.ASCII)

_log: Final = structlog.get_logger(__name__)


class UsageReportServicer(pb_grpc.UsageServiceServicer):
    """Takes batches into the ledger, one commit each, and sums what users used.

    A stream has one batch in work; the others wait in the flow control of the connection.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
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

    async def GetUserUsage(
        self,
        request: pb.GetUserUsageRequest,
        context: grpc.aio.ServicerContext[pb.GetUserUsageRequest, pb.UserUsage],
    ) -> pb.UserUsage:
        """Return what a user used, by the ledger."""
        is_day = _DAY.fullmatch(request.usage_day) and _MONTH.fullmatch(request.usage_month)
        if not is_day or "\0" in request.user_id:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a day is 20261121 and a month is 202611"
            )
        try:
            async with asyncio.timeout(_SUMS_DEADLINE_S), self._store.reading() as session:
                found = await ledger.user_usage(
                    session,
                    request.user_id,
                    usage_day=request.usage_day,
                    usage_month=request.usage_month,
                    since=self._store.clock() - _LATELY,
                )
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.error("usage of a user not read", error=type(error).__name__)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the ledger is away")
        return pb.UserUsage(
            total=totals_to_proto(found.total),
            month=totals_to_proto(found.month),
            day=totals_to_proto(found.day),
            last_24h=totals_to_proto(found.lately),
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
        async with asyncio.timeout(_COMMIT_DEADLINE_S), self._store.ledger() as session:
            await ledger.record(session, rows)
            await sightings.record(session, seen)


def totals_to_proto(totals: UsageTotals) -> pb.UsageTotals:
    """Encode sums."""
    return pb.UsageTotals(
        requests=totals.requests,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        charged_nanousd=totals.charged_nanousd,
    )
