"""The way of one request: authenticate → route → admit → call → stream → settle → report.

A request sees one snapshot from its first byte to its bill. It ends exactly once, on every exit:

| what happened                                | reservation                      | record    |
|----------------------------------------------|----------------------------------|-----------|
| nothing of it was written upstream           | released: nothing is charged     | released  |
| the provider answered                        | settled at the reported usage    | settled   |
| the answer was cut, or the caller left       | settled at what was counted      | settled   |
| the provider failed, or stayed silent        | settled at 0, or what it reports | settled   |
| this process died                            | at the next start, in full       | abandoned |
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import httpx

from dataplane.admissions import Admission
from dataplane.admitting import Admitting
from dataplane.bills import Bill, BillBook
from dataplane.domain.authentication import authenticate, is_revoked
from dataplane.domain.calls import NO_USAGE, Call, Usage, UsageSource
from dataplane.domain.credentials import Credentials, unknown_key
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.request_ids import request_id
from dataplane.domain.routing import route
from dataplane.domain.snapshot import Snapshot
from dataplane.top_up import TopUp
from dataplane.upstream.answers import StreamReader
from dataplane.upstream.attempts import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    NotSentError,
    UpstreamAnswer,
    Upstreams,
)
from dataplane.upstream.errors import refusal_for as refusal_for_upstream
from dataplane.upstream.relay import Relay, answer_was_cut

_OK: Final = 200
# Redirects are not followed: to a caller they are a provider's fault too.
_FIRST_ERROR: Final = 300
# A caller that left: nginx' status for it; only the ledger sees it.
CLIENT_LEFT: Final = 499
_UNKNOWN_USAGE: Final = replace(NO_USAGE, source=UsageSource.UNKNOWN)


class CurrentSnapshot(Protocol):
    """Where the configuration in force is."""

    def get(self) -> Snapshot:
        """Return it, or refuse with CONFIGURATION_UNAVAILABLE before the first one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer, open while the caller reads it.

    Either `body` is all of it, or `stream` yields its bytes once; a stream that fails after its
    first byte raises a `Refusal`.
    """

    bill: Bill
    status: int
    content_type: str
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


@dataclass(slots=True)
class Pipeline:
    """Everything a request touches, in the order in which it touches it."""

    current: CurrentSnapshot
    admitting: Admitting
    upstreams: Upstreams
    bills: BillBook
    clock_ms: Callable[[], int]
    is_draining: bool = False
    _open: dict[str, tuple[Bill, UpstreamAnswer]] = field(default_factory=dict)
    # Those that no provider has answered yet, and what ends their waiting.
    _calling: dict[str, tuple[Bill, asyncio.Timeout]] = field(default_factory=dict)

    def new_request_id(self) -> str:
        """Return the id of a request that was just read."""
        return request_id(self.clock_ms(), os.urandom(10))

    @property
    def in_flight(self) -> int:
        """Return how many answers are being passed on."""
        return len(self._open)

    @asynccontextmanager
    async def exchange(self, call: Call, credentials: Credentials) -> AsyncIterator[Answer]:
        """Admit `call` and hold its answer open while the caller reads it.

        Leaving the context ends the request's bill, whatever the way out: a caller that is gone,
        or cancelled, pays for what was generated, and the call to the provider is cancelled.

        Raises:
            Refusal: The call was not admitted, or the provider failed.
        """
        admission = await self._admit(call, credentials)
        bill = self.bills.bill_for(admission)
        upstream: UpstreamAnswer | None = None
        try:
            upstream = await self._call(bill)
            self._open[call.request_id] = (bill, upstream)
            if upstream.status >= _FIRST_ERROR:
                yield await self._failed(bill, upstream)
            elif call.is_stream and upstream.is_event_stream:
                async with self._streamed(bill, upstream) as answer:
                    yield answer
            else:
                yield await self._whole(bill, upstream)
        except Refusal as refusal:
            # Admitted, it was counted: its caller learns where its limits stand all the same.
            refusal.standings, refusal.is_degraded = admission.tried, admission.is_degraded
            raise
        finally:
            # Still open: the caller left before there was an answer. The provider has read what it sent.
            bill.settle(_read_by_provider(call), CLIENT_LEFT)
            if upstream is not None:
                del self._open[call.request_id]
                await upstream.aclose()

    async def _admit(self, call: Call, credentials: Credentials) -> Admission:
        if self.is_draining:
            raise Refusal(Reason.DRAINING, "This proxy is shutting down.", retry_after_seconds=1)
        snapshot = self.current.get()
        now_ms = self.clock_ms()
        principal = authenticate(snapshot, credentials, now_ms)
        attempt = route(
            snapshot, principal, call, draw=int(call.request_id[-8:], 16), now_ms=now_ms
        )
        if self.bills.reporter.is_full:
            raise Refusal(Reason.USAGE_BACKLOG, "Usage cannot be recorded right now.")
        return await self.admitting.admit(snapshot, principal, call, attempt, now_ms)

    async def _call(self, bill: Bill) -> UpstreamAnswer:
        """Send the request; no answer without a record of it."""
        it = bill.admission
        bill.open()
        try:
            async with asyncio.timeout(None) as until_revoked:
                self._calling[it.call.request_id] = bill, until_revoked
                try:
                    return await self.upstreams.send(it.attempt, it.call, it.output_cap_tokens)
                finally:
                    del self._calling[it.call.request_id]
        except TimeoutError:
            # The provider may have read it, and be at work.
            refusal = unknown_key()
            bill.fail(_read_by_provider(it.call), refusal.reason)
            raise refusal from None
        except NotSentError as error:
            bill.release(error.refusal.reason)
            raise error.refusal from error
        except Refusal as refusal:
            bill.fail(_UNKNOWN_USAGE, refusal.reason)
            raise

    async def _failed(self, bill: Bill, upstream: UpstreamAnswer) -> Answer:
        """Refuse for the provider's error, or return it where it is the caller's own fault."""
        try:
            body = await upstream.body(MAX_ERROR_BYTES)
        except httpx.TransportError:
            body = b""
        refusal = refusal_for_upstream(upstream.status, upstream.headers, body)
        if refusal is None:
            bill.settle(NO_USAGE, upstream.status, Reason.INVALID_REQUEST.value)
            return Answer(bill, upstream.status, upstream.content_type, body)
        bill.fail(NO_USAGE, refusal.reason)
        raise refusal

    async def _whole(self, bill: Bill, upstream: UpstreamAnswer) -> Answer:
        call = bill.admission.call
        try:
            body = await upstream.body(MAX_ANSWER_BYTES)
            usage = self.upstreams.translator_for(call.dialect).usage_of(call, body)
        except httpx.TransportError as error:
            bill.fail(_UNKNOWN_USAGE, Reason.UPSTREAM_ERROR)
            raise self._blamed(bill, answer_was_cut()) from error
        except Refusal as refusal:
            bill.fail(_UNKNOWN_USAGE, refusal.reason)
            raise
        bill.note_content()
        self._settle_whole(bill, usage)
        return Answer(bill, upstream.status, upstream.content_type, body)

    def _settle_whole(self, bill: Bill, usage: Usage) -> None:
        """Charge an answer that came whole, and learn from it how long answers of its model are."""
        bill.settle(usage, _OK)
        self.admitting.note_answer(bill.admission, usage.output_tokens)

    @asynccontextmanager
    async def _streamed(self, bill: Bill, upstream: UpstreamAnswer) -> AsyncIterator[Answer]:
        call = bill.admission.call
        translator = self.upstreams.translator_for(call.dialect)
        reader = translator.stream_reader(call)
        relay = Relay(
            upstream.chunks,
            reader,
            translator.ping,
            on_complete=lambda: self._settle_whole(bill, reader.usage()),
            on_content=bill.note_content,
        )
        try:
            head = await relay.head()
            async with aclosing(self._passed_on(bill, relay, reader, head)) as stream:
                yield Answer(bill, _OK, upstream.content_type, stream=stream)
        except Refusal as refusal:
            # Before the first content nothing was bought, unless the provider says otherwise.
            bill.fail(reader.reported() or NO_USAGE, refusal.reason)
            raise self._blamed(bill, refusal) from refusal
        finally:
            if not bill.is_closed:
                bill.settle(reader.usage(), CLIENT_LEFT)
            await relay.aclose()

    async def _passed_on(
        self, bill: Bill, relay: Relay, reader: StreamReader, head: bytes
    ) -> AsyncGenerator[bytes]:
        """Yield the answer; where it fails, charge what was passed on so far.

        One that a soft budget has no more room for ends as if it had reached its output cap.
        """
        top_up = TopUp(bill.admission, reader) if bill.admission.plan.has_soft_budget else None
        try:
            if head:
                yield head
            async with aclosing(relay.rest()) as rest:
                async for chunk in rest:
                    yield chunk
                    if top_up is None or bill.is_closed or await top_up.has_room():
                        continue
                    bill.settle(reader.usage(), _OK, Reason.INSUFFICIENT_QUOTA.value)
                    yield reader.cut_short()
                    return
        except Refusal as refusal:
            bill.settle(reader.usage(), _OK, refusal.reason.value)
            raise self._blamed(bill, refusal) from refusal

    def _blamed(self, bill: Bill, refusal: Refusal) -> Refusal:
        """Return why an answer broke off: a revocation ends it just as a broken provider does."""
        return unknown_key() if bill.is_revoked else refusal

    async def terminate(self, revoked: frozenset[tuple[str, str]]) -> int:
        """End the answers in flight of revoked subjects, also those that have not begun; return how many."""
        calling = [
            until_revoked
            for bill, until_revoked in self._calling.values()
            if is_revoked(revoked, bill.admission.principal) and not until_revoked.expired()
        ]
        for until_revoked in calling:
            until_revoked.reschedule(0)
        ended = [
            (bill, upstream)
            for bill, upstream in self._open.values()
            if is_revoked(revoked, bill.admission.principal)
        ]
        for bill, upstream in ended:
            bill.is_revoked = True
            await upstream.hang_up()
        return len(calling) + len(ended)


def _read_by_provider(call: Call) -> Usage:
    """Return what a call used of which nothing came back, as far as anybody can tell: its input."""
    reads = call.input_estimate_tokens
    return Usage(
        input_total_tokens=reads, input_uncached_tokens=reads, source=UsageSource.ESTIMATED
    )
