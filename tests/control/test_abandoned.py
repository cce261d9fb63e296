"""Records of requests whose process died reach the ledger beside the stream, or whoever asks knows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.usage_records import record_from
from dataplane.domain.calls import UsageState
from dataplane.domain.counters import LedgerUnavailable
from tests.control.ledger import Context, Ledger
from tests.control.reporters import NODE_TOKEN, close, reporter_on
from tests.control.usage_events import until, usage_event


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    await ledger.start()
    yield ledger
    await ledger.die()


async def test_abandoned_requests_are_in_the_ledger_when_the_call_returns(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    events = [usage_event(UsageState.ABANDONED) for _ in range(1_100)]

    assert await reporter.deliver_abandoned(events, 5) == ()

    assert ledger.taken == [event.request_id for event in events]
    assert max(len(batch.records) for batch in ledger.batches) == 500
    assert ledger.batches[0].records[0] == record_from(events[0])
    assert ledger.batches[0].node_id == "this-node"
    assert ledger.tokens == {f"Bearer {NODE_TOKEN}"}
    assert reporter.unreported_records == 0
    await reporter.aclose(0)


async def test_the_stream_of_records_goes_on_meanwhile_and_while_it_is_paused(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    first = close(reporter, 1)
    await until(lambda: reporter.unreported_records == 0)
    reporter.pause()
    second = close(reporter, 1)
    abandoned = usage_event(UsageState.ABANDONED)

    await reporter.deliver_abandoned([abandoned], 5)
    assert ledger.taken == [*first, abandoned.request_id]

    reporter.resume()
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == [*first, abandoned.request_id, *second]
    assert ledger.streams == 2
    await reporter.aclose(1)


async def test_without_an_acknowledgement_the_call_fails_in_time(
    tmp_path: Path, ledger: Ledger
) -> None:
    async def silent(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return False

    ledger.answer = silent
    reporter = reporter_on(tmp_path, ledger.address)
    async with asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable):
            await reporter.deliver_abandoned([usage_event(UsageState.ABANDONED)], 0.1)
    await ledger.die()
    async with asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable):
            await reporter.deliver_abandoned([usage_event(UsageState.ABANDONED)], 2)
    await reporter.aclose(0)


async def test_a_wrong_acknowledgement_is_none(tmp_path: Path, ledger: Ledger) -> None:
    async def other(request: pb.ReportUsageRequest, _context: Context) -> bool:
        request.batch_id += 1
        return True

    ledger.answer = other
    reporter = reporter_on(tmp_path, ledger.address)
    with pytest.raises(LedgerUnavailable):
        await reporter.deliver_abandoned([usage_event(UsageState.ABANDONED)], 5)
    await reporter.aclose(0)


async def test_a_control_plane_that_is_away_is_left_for_the_next(
    tmp_path: Path, ledger: Ledger
) -> None:
    away = Ledger()
    await away.start()
    await away.die()
    reporter = reporter_on(tmp_path, away.address, ledger.address)
    event = usage_event(UsageState.ABANDONED)

    await reporter.deliver_abandoned([event], 5)

    assert ledger.taken == [event.request_id]
    await reporter.aclose(0)


async def test_a_record_that_the_ledger_never_takes_is_named_and_the_others_arrive(
    tmp_path: Path, ledger: Ledger
) -> None:
    events = [usage_event(UsageState.ABANDONED) for _ in range(5)]
    bad = events[2].request_id

    async def picky(request: pb.ReportUsageRequest, context: Context) -> bool:
        if bad in {record.request_id for record in request.records}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ip makes no sense")
        return True

    ledger.answer = picky
    reporter = reporter_on(tmp_path, ledger.address)
    with capture_logs() as logs:
        assert await reporter.deliver_abandoned(events, 5) == (bad,)

    assert ledger.taken == [each.request_id for each in events if each.request_id != bad]
    assert [each["request_id"] for each in logs if each["event"] == "usage_record_refused"] == [bad]
    await reporter.aclose(0)


async def test_nothing_to_deliver_asks_nobody(tmp_path: Path, ledger: Ledger) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    assert await reporter.deliver_abandoned([], 5) == ()
    assert ledger.streams == 0
    await reporter.aclose(0)
