"""Budgets that were used up: the ledger hears of each, once, whatever happens to the stream."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control import budget_events
from dataplane.control.budget_events import BudgetEvents
from dataplane.domain.counters import BudgetEvent, CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from tests.control.ledger import Context, Ledger, take
from tests.control.reporters import close, reporter_on
from tests.control.usage_events import until


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    await ledger.start()
    yield ledger
    await ledger.die()


def event(number: int, percent: int = 80) -> BudgetEvent:
    counter = CounterName(
        SubjectKind.USER, f"user{number}", Unit.SPEND, Window.MONTH, "202611", reset_generation=2
    )
    return BudgetEvent(counter, percent, 1_000, 790, 15, 1_792_000_000_123)


def told(ledger: Ledger) -> list[tuple[str, int]]:
    return [
        (each.counter.subject_id, each.percent)
        for batch in ledger.batches
        for each in batch.budget_events
    ]


async def test_an_event_travels_alone_or_with_records_and_says_all_of_it(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()

    reporter.note_budget_event(event(1))
    await until(lambda: len(ledger.batches) == 1)
    ids = close(reporter, 1)
    reporter.note_budget_event(event(1, 100))
    await until(lambda: len(told(ledger)) == 2)

    [alone] = ledger.batches[0].budget_events
    assert alone.counter == limits_pb2.Counter(
        subject_kind=limits_pb2.SUBJECT_KIND_USER,
        subject_id="user1",
        unit=limits_pb2.LIMIT_UNIT_SPEND,
        window=limits_pb2.LIMIT_WINDOW_MONTH,
        period_id="202611",
        reset_generation=2,
    )
    figures = (alone.percent, alone.capacity_nanousd, alone.settled_nanousd, alone.held_nanousd)
    assert figures == (80, 1_000, 790, 15)
    assert alone.reached_at.ToMilliseconds() == 1_792_000_000_123
    assert ledger.batches[0].records == []
    assert [each.request_id for each in ledger.batches[1].records] == ids
    assert told(ledger) == [("user1", 80), ("user1", 100)]
    await reporter.aclose(1)


async def test_the_same_event_is_delivered_once_per_process(tmp_path: Path, ledger: Ledger) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    reporter.note_budget_event(event(1))
    reporter.note_budget_event(event(1))
    await until(lambda: len(ledger.batches) == 1 and not reporter._backlog.on_the_way)

    reporter.note_budget_event(event(1))
    reporter.note_budget_event(event(2))
    await reporter.aclose(5)

    assert told(ledger) == [("user1", 80), ("user2", 80)]


async def test_an_event_survives_a_stream_that_is_lost(tmp_path: Path, ledger: Ledger) -> None:
    async def silent(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return False

    ledger.answer = silent
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    reporter.note_budget_event(event(1))
    await until(lambda: len(ledger.batches) == 1)

    await ledger.die()
    ledger.answer = take
    await ledger.start()
    await until(lambda: len(ledger.batches) == 2 and not reporter._backlog.on_the_way)

    assert told(ledger) == [("user1", 80)] * 2
    await reporter.aclose(1)


async def test_closing_delivers_an_event_that_waits(tmp_path: Path, ledger: Ledger) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    reporter.note_budget_event(event(1))

    await reporter.aclose(5)

    assert told(ledger) == [("user1", 80)]


async def test_more_events_than_a_batch_holds_take_several(tmp_path: Path, ledger: Ledger) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    for number in range(1_200):
        reporter.note_budget_event(event(number))
    reporter.start()

    await until(lambda: len(told(ledger)) == 1_200)

    assert max(len(batch.budget_events) for batch in ledger.batches) == 500
    await reporter.aclose(1)


async def test_an_event_that_the_ledger_never_takes_holds_up_nothing_else(
    tmp_path: Path, ledger: Ledger
) -> None:
    stored: list[str] = []

    async def picky(request: pb.ReportUsageRequest, context: Context) -> bool:
        names = [each.counter.subject_id for each in request.budget_events]
        if "user2" in names:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such counter")
        stored.extend(names)
        return True

    ledger.answer = picky
    reporter = reporter_on(tmp_path, ledger.address)
    ids = close(reporter, 3)
    for number in range(4):
        reporter.note_budget_event(event(number))
    with capture_logs() as logs:
        reporter.start()
        await until(lambda: reporter.unreported_records == 0 and len(stored) == 3)

    assert sorted(ledger.taken) == sorted(ids)
    assert stored == ["user0", "user1", "user3"]
    assert [each["subject_id"] for each in logs if each["event"] == "budget_event_refused"] == [
        "user2"
    ]
    reporter.note_budget_event(event(9))
    await until(lambda: stored[-1] == "user9")
    assert not (tmp_path / "refused").exists()
    await reporter.aclose(1)


def test_what_waits_is_bounded_and_what_is_lost_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget_events, "MAX_WAITING", 3)
    events = BudgetEvents()
    with capture_logs() as logs:
        for number in range(5):
            events.note(event(number))

    assert [each.counter.subject_id for each in events.take()] == ["user0", "user1", "user2"]
    assert [each["event"] for each in logs] == ["budget_events_lost"]
    events.note(event(4))
    assert [each.counter.subject_id for each in events.take()] == ["user4"]


def test_what_is_remembered_as_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_events, "MAX_REMEMBERED", 3)
    events = BudgetEvents()
    for number in range(4):
        events.note(event(number))
    events.take()

    events.note(event(3))
    assert len(events) == 0
    events.note(event(0))
    assert len(events) == 1
