"""Delivers the records of requests whose process died, on a stream of their own."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
import structlog
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from dataplane.control.backlog import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from dataplane.control.channels import LOOPBACK, Channels
from dataplane.control.usage_records import record_from
from dataplane.domain.calls import UsageEvent
from dataplane.domain.counters import LedgerUnavailable

Metadata = tuple[tuple[str, str], ...]

_log: Final = structlog.get_logger(__name__)
_Call = grpc.aio.StreamStreamCall[pb.ReportUsageRequest, pb.ReportUsageResponse]


async def deliver_alone(
    addresses: Sequence[str],
    metadata: Metadata,
    node_id: str,
    events: Sequence[UsageEvent],
    deadline_seconds: float,
    channels: Channels = LOOPBACK,
) -> tuple[str, ...]:
    """Write `events` to a control plane and wait until they are committed.

    One batch is on the way at a time. Where something in it can never be stored, its records are
    sent one by one.

    Args:
        addresses: Control planes, `host:port`; the next one is asked where one is away.
        metadata: What this node proves itself with.
        node_id: Who reports.
        events: What is delivered.
        deadline_seconds: For all of it.
        channels: How control planes are reached.

    Returns:
        The requests whose records the ledger never takes; they are logged.

    Raises:
        LedgerUnavailable: Not all the others are known to be committed.
    """
    refused: list[str] = []
    try:
        async with asyncio.timeout(deadline_seconds):
            for batch in _batches([record_from(event) for event in events]):
                refused += await _Way(addresses, metadata, node_id, channels).deliver(batch)
    except TimeoutError as error:
        raise LedgerUnavailable("abandoned requests were not acknowledged in time") from error
    return tuple(refused)


@dataclass(frozen=True, slots=True)
class _Way:
    """How batches get to a ledger; see `deliver_alone`."""

    addresses: Sequence[str]
    metadata: Metadata
    node_id: str
    channels: Channels

    async def deliver(self, batch: list[pb.UsageRecord]) -> list[str]:
        """Deliver a batch to any control plane; return the requests that the ledger never takes."""
        reason = "there is no control plane"
        for address in self.addresses:
            try:
                await self._write(address, batch)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    return await self._find_refused(batch)
                reason = f"a stream ended with {error.code().name}"
            except asyncio.InvalidStateError:
                reason = "a stream ended while it was written to"
            except EOFError:
                reason = "a stream ended without an acknowledgement"
            else:
                return []
        raise LedgerUnavailable(reason)

    async def _find_refused(self, batch: list[pb.UsageRecord]) -> list[str]:
        if len(batch) > 1:
            each = [await self.deliver([record]) for record in batch]
            return [request_id for refused in each for request_id in refused]
        request_id = batch[0].request_id
        _log.error("usage_record_refused", request_id=request_id)
        return [request_id]

    async def _write(self, address: str, batch: list[pb.UsageRecord]) -> None:
        """Send a batch and wait for its acknowledgement.

        Raises:
            grpc.aio.AioRpcError: The stream failed.
            asyncio.InvalidStateError: It had failed before all was written.
            EOFError: It ended, or answered something else.
        """
        async with self.channels.to(address) as channel:
            stub = pb_grpc.UsageServiceStub(channel)
            call: _Call = stub.ReportUsage(metadata=self.metadata)
            try:
                request = pb.ReportUsageRequest(batch_id=1, node_id=self.node_id, records=batch)
                await call.write(request)
                response = await call.read()
                if not isinstance(response, pb.ReportUsageResponse) or response.batch_id != 1:
                    raise EOFError("the batch was not acknowledged")
            finally:
                call.cancel()


def _batches(records: list[pb.UsageRecord]) -> Iterator[list[pb.UsageRecord]]:
    batch: list[pb.UsageRecord] = []
    size = 0
    for record in records:
        length = record.ByteSize()
        if batch and (len(batch) == MAX_BATCH_RECORDS or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch
