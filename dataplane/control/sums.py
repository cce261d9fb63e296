"""What the ledger says of counters, asked of a control plane."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Final, TypeVar

import grpc
import grpc.aio
from tollkeeper.usage.v1 import usage_service_pb2 as pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as pb_grpc

from dataplane.control.channels import LOOPBACK, ChannelCache, Channels, credentials_of
from dataplane.control.counter_messages import (
    counter_from_proto,
    counter_to_proto,
    kind_to_proto,
    subject_to_proto,
)
from dataplane.domain.counters import (
    CounterKind,
    CounterName,
    CounterSum,
    LedgerUnavailable,
    SubjectName,
)

# As many counters, requests or subjects as one call may name.
MAX_NAMED: Final = 1_000
# Totals are looked up by key: a call that takes longer has met a control plane in trouble.
CALL_SECONDS: Final = 5.0
# One that is asked a second time gives the others no better answer: the caller comes again anyway.
_MOST_ASKED: Final = 2

_List = grpc.aio.UnaryStreamCall[pb.ListSumsRequest, pb.ListSumsResponse]
_Batch = pb.ListSumsResponse | None
T = TypeVar("T")
V = TypeVar("V")


class LedgerClient:
    """Asks `UsageService` for sums; belongs to one event loop.

    A control plane that does not answer is left for the next one, once per question. Nothing is
    remembered but the connections.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        node_token: str,
        call_seconds: float = CALL_SECONDS,
        channels: Channels = LOOPBACK,
    ) -> None:
        """Prepare; connections are opened by the first question.

        Args:
            addresses: Control planes, `host:port`.
            node_token: What this node proves itself with.
            call_seconds: For the answer of one of them, or the next part of it.
            channels: How they are reached.

        Raises:
            ValueError: An address cannot be used, or there is none.
        """
        if not addresses:
            raise ValueError("sums need the address of a control plane")
        for address in addresses:
            channels.check(address)
        self._addresses = tuple(addresses)
        self._metadata = credentials_of(node_token)
        self._call_seconds = call_seconds
        self._channels = ChannelCache(channels)
        self._preferred = 0

    async def sums(self, counters: Sequence[CounterName]) -> list[int]:
        """Return what the ledger says of `counters`, in their order; 0 of what nobody used.

        Amounts of up to 1,000 are of one instant.

        Raises:
            LedgerUnavailable: No control plane answered in time.
        """
        return [amount for few in _parts_of(counters) for amount in await self._sums(few)]

    async def list_sums(
        self,
        kinds: Collection[CounterKind],
        period_ids: Collection[str],
        subjects: Sequence[SubjectName] = (),
    ) -> AsyncGenerator[list[CounterSum]]:
        """Yield every sum other than 0 of these kinds and periods, in batches of at most 1,000.

        All are of one instant, unless there are more than 1,000 subjects.

        Args:
            kinds: Kinds of counter that exist somewhere; without any there is nothing to yield.
            period_ids: `20261121`, `202611` or `total`.
            subjects: Only these; none: all of them.

        Raises:
            LedgerUnavailable: No control plane answered in time, or one fell silent on the way:
                what was yielded then is a part.
        """
        if not kinds or not period_ids:
            return
        for few in _parts_of(subjects) if subjects else [()]:
            request = pb.ListSumsRequest(
                kinds=map(kind_to_proto, kinds),
                period_ids=period_ids,
                subjects=map(subject_to_proto, few),
            )
            call, batch = await self._begin(request)
            try:
                while batch is not None:
                    yield _sums_in(batch)
                    batch = await self._following(call)
            finally:
                call.cancel()

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        """Return which of these requests the ledger has, in whatever state.

        Raises:
            LedgerUnavailable: No control plane answered in time.
        """
        return {name for few in _parts_of(request_ids) for name in await self._known(few)}

    async def reporters(self) -> set[str]:
        """Return the ids of the data planes that are connected to any control plane that answers.

        Raises:
            LedgerUnavailable: None answered in time.
        """
        answers = await asyncio.gather(
            *map(self._reporters, self._addresses), return_exceptions=True
        )
        found = [each for each in answers if not isinstance(each, BaseException)]
        if not found:
            raise LedgerUnavailable("no control plane says who reports")
        return set().union(*found)

    async def aclose(self) -> None:
        """Close the connections; questions under way fail."""
        await self._channels.aclose()

    async def _sums(self, counters: Sequence[CounterName]) -> Sequence[int]:
        request = pb.SumUsageRequest(counters=map(counter_to_proto, counters))
        answer = await self._ask(lambda stub: stub.SumUsage(request, metadata=self._metadata))
        if len(answer.amounts) != len(counters):
            raise LedgerUnavailable("a control plane answered other counters than it was asked")
        return answer.amounts

    async def _known(self, request_ids: Sequence[str]) -> Sequence[str]:
        request = pb.FindRecordsRequest(request_ids=request_ids)
        answer = await self._ask(lambda stub: stub.FindRecords(request, metadata=self._metadata))
        return answer.request_ids

    async def _reporters(self, address: str) -> Sequence[str]:
        async with asyncio.timeout(self._call_seconds):
            stub = pb_grpc.UsageServiceStub(self._channels.to(address))
            request = pb.ListReportersRequest()
            return (await stub.ListReporters(request, metadata=self._metadata)).node_ids

    async def _begin(self, request: pb.ListSumsRequest) -> tuple[_List, _Batch]:
        async def begin(stub: "pb_grpc.UsageServiceAsyncStub") -> tuple[_List, _Batch]:
            call = stub.ListSums(request, metadata=self._metadata)
            try:
                return call, await _read(call)
            except BaseException:
                call.cancel()
                raise

        return await self._ask(begin)

    async def _following(self, call: _List) -> _Batch:
        try:
            async with asyncio.timeout(self._call_seconds):
                return await _read(call)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise LedgerUnavailable(f"sums broke off: {_reason_of(error)}") from error

    async def _ask(self, ask: "Callable[[pb_grpc.UsageServiceAsyncStub], Awaitable[T]]") -> T:
        reason = ""
        for _ in range(min(_MOST_ASKED, len(self._addresses))):
            place = self._preferred
            channel = self._channels.to(self._addresses[place])
            try:
                async with asyncio.timeout(self._call_seconds):
                    return await ask(pb_grpc.UsageServiceStub(channel))
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                reason = _reason_of(error)
            # Another question may have left it meanwhile.
            if place == self._preferred:
                self._preferred = (place + 1) % len(self._addresses)
        raise LedgerUnavailable(f"sums were not answered: {reason}")


async def _read(call: _List) -> _Batch:
    """Return the next batch; None at the end."""
    response = await call.read()
    return response if isinstance(response, pb.ListSumsResponse) else None


def _sums_in(batch: pb.ListSumsResponse) -> list[CounterSum]:
    """Return the sums of a batch, without those that only newer programs know."""
    named = ((counter_from_proto(each.counter), each.amount) for each in batch.sums)
    return [CounterSum(counter, amount) for counter, amount in named if counter is not None]


def _parts_of(values: Sequence[V]) -> Iterator[Sequence[V]]:
    return (values[start : start + MAX_NAMED] for start in range(0, len(values), MAX_NAMED))


def _reason_of(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else "no answer in time"
