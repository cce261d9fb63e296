"""What a reporter says and does while counters are rebuilt: it holds still, and names what it has."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.spool import Spool
from dataplane.domain.calls import UsageState
from dataplane.domain.request_ids import request_id
from tests.control.ledger import Context, Ledger, take
from tests.control.reporters import close, reporter_on, unacknowledged
from tests.control.usage_events import until, usage_event


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    await ledger.start()
    yield ledger
    await ledger.die()


async def silent(_request: pb.ReportUsageRequest, _context: Context) -> bool:
    return False


async def test_a_paused_reporter_sends_nothing_until_it_goes_on(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    before = close(reporter, 1)
    await until(lambda: reporter.unreported_records == 0)

    reporter.pause()
    held = close(reporter, 3)
    assert await reporter.drained(1)
    # Longer than it gathers: what it would send now would have arrived.
    await asyncio.sleep(0.1)
    assert ledger.taken == before

    reporter.resume()
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == before + held
    await reporter.aclose(1)


async def test_a_batch_that_was_being_read_when_the_pause_began_is_not_sent(
    tmp_path: Path, ledger: Ledger
) -> None:
    spool, _ = Spool.open(tmp_path)
    left = usage_event()
    spool.append_close(left)
    await spool.aclose()
    reporter = reporter_on(tmp_path, ledger.address)
    reading = asyncio.Event()
    go_on = asyncio.Event()
    read_closes = reporter._spool.read_closes

    async def slow_disk(request_ids: list[str]) -> object:
        reading.set()
        await go_on.wait()
        return await read_closes(request_ids)

    reporter._spool.read_closes = slow_disk  # type: ignore[method-assign,assignment] # a slow disk
    reporter.start()
    async with asyncio.timeout(5):
        await reading.wait()

    reporter.pause()
    go_on.set()
    await until(lambda: not reporter._backlog.waiting)
    assert await reporter.drained(1)
    assert list(await unacknowledged(reporter)) == [left.request_id]
    assert ledger.batches == []

    reporter.resume()
    await until(lambda: ledger.taken == [left.request_id])
    await reporter.aclose(1)


async def test_draining_waits_for_what_is_on_the_way(tmp_path: Path, ledger: Ledger) -> None:
    go_on = asyncio.Event()

    async def later(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return await go_on.wait()

    ledger.answer = later
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    close(reporter, 2)
    await until(lambda: len(ledger.batches) == 1)
    reporter.pause()

    assert not await reporter.drained(0.05)
    go_on.set()
    assert await reporter.drained(5)
    assert reporter.unreported_records == 0
    await reporter.aclose(1)


async def test_what_is_not_acknowledged_is_named_wherever_it_is(
    tmp_path: Path, ledger: Ledger
) -> None:
    ledger.answer = silent
    reporter = reporter_on(tmp_path, ledger.address, max_events_in_memory=700)
    reporter.start()
    sent = close(reporter, 500)
    await until(lambda: len(ledger.batches) == 1)
    reporter.pause()
    waiting = close(reporter, 900)

    batches = [batch async for batch in reporter.unacknowledged()]

    assert max(map(len, batches)) <= 500
    found = [event.request_id for batch in batches for event in batch]
    assert sorted(found) == sorted(sent + waiting)
    assert reporter.unreported_records == 1_400

    await ledger.die()
    await until(lambda: not reporter._backlog.on_the_way)
    assert set(await unacknowledged(reporter)) == {*sent, *waiting}
    ledger.answer = take
    await ledger.start()
    reporter.resume()
    await until(lambda: reporter.unreported_records == 0)
    assert await unacknowledged(reporter) == {}
    await reporter.aclose(1)


async def test_what_is_not_acknowledged_is_that_of_one_instant(tmp_path: Path) -> None:
    reporter = reporter_on(tmp_path, "127.0.0.1:1", max_events_in_memory=0)
    before = close(reporter, 3)

    asked = reporter.unacknowledged()
    close(reporter, 2)

    assert [event.request_id for batch in [b async for b in asked] for event in batch] == before
    await reporter.aclose(0)


async def test_events_are_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    reporter = reporter_on(tmp_path, "127.0.0.1:1", max_events_in_memory=1)
    events = [usage_event(), usage_event()]
    for event in events:
        reporter.record_close(event)

    found = await unacknowledged(reporter)

    assert found == {event.request_id: event for event in events}
    await reporter.aclose(0)


async def test_the_oldest_unreported_request_is_known_from_its_first_byte_to_the_ledger(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    young = usage_event(request=request_id(2_000, bytes(10)))
    old = usage_event(UsageState.ABANDONED, request=request_id(1_000, bytes(10)))
    assert reporter.oldest_unreported_ms is None

    reporter.record_close(young)
    assert reporter.oldest_unreported_ms == 2_000
    reporter.record_open(old)
    assert reporter.oldest_unreported_ms == 1_000
    reporter.record_close(old)
    assert reporter.oldest_unreported_ms == 1_000

    reporter.start()
    await until(lambda: reporter.unreported_records == 0)
    assert reporter.oldest_unreported_ms is None
    reporter.record_open(usage_event(request=request_id(3_000, bytes(10))))
    reporter.record_close(usage_event(request=request_id(2_500, bytes(10))))
    assert reporter.oldest_unreported_ms == 2_500
    await until(lambda: reporter.unreported_records == 0)
    assert reporter.oldest_unreported_ms == 3_000
    await reporter.aclose(1)


async def test_a_process_that_ends_while_paused_leaves_everything_to_the_next(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    reporter.pause()
    ids = close(reporter, 3)

    async with asyncio.timeout(5):
        await reporter.aclose(60)

    assert ledger.taken == []
    spool, recovered = Spool.open(tmp_path)
    assert list(recovered.closes) == ids
    await spool.aclose()
