"""Sightings: the last call of each device, bounded, and how they travel with usage."""

import asyncio
import sys
import time
import timeit
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.sightings import MAX_DEVICES, Sighting, Sightings, message_from
from dataplane.control.spool import Spool
from dataplane.control.usage import Pace, UsageReporter
from tests.control.ledger import Context, Ledger
from tests.control.usage_events import until, usage_event

NOW_MS = 1_792_000_000_000


def test_the_last_call_of_a_device_stands_for_those_before() -> None:
    sightings = Sightings()
    sightings.note("d1", NOW_MS, "203.0.113.1", "old")
    sightings.note("d2", NOW_MS, "203.0.113.2")
    sightings.note("d1", NOW_MS + 1, "203.0.113.9", "new", "macos", "1.4.2")

    assert sightings.take() == [
        Sighting("d2", NOW_MS, "203.0.113.2"),
        Sighting("d1", NOW_MS + 1, "203.0.113.9", "new", "macos", "1.4.2"),
    ]
    assert sightings.take() == []


def test_the_same_again_within_ten_seconds_is_not_noted_again() -> None:
    sightings = Sightings()
    for at_ms in (0, 1, 9_999, 10_000, 19_999, 20_000):
        sightings.note("d1", NOW_MS + at_ms, "203.0.113.1", "ua", "macos", "1")
        if at_ms in (0, 10_000, 20_000):
            assert [each.seen_at_ms for each in sightings.take()] == [NOW_MS + at_ms]
        else:
            assert not sightings.take()


@pytest.mark.parametrize(
    "change",
    [{"address": "203.0.113.2"}, {"user_agent": "x"}, {"platform": "x"}, {"version": "x"}],
    ids=lambda change: next(iter(change)),
)
def test_what_a_device_says_anew_is_noted_at_once(change: dict[str, str]) -> None:
    sightings = Sightings()
    said = {"address": "203.0.113.1", "user_agent": "ua", "platform": "macos", "version": "1"}
    sightings.note("d1", NOW_MS, **said)
    sightings.take()

    sightings.note("d1", NOW_MS + 1, **{**said, **change})

    assert sightings.take() == [Sighting("d1", NOW_MS + 1, **{**said, **change})]


def test_what_a_device_does_not_repeat_stays_known() -> None:
    sightings = Sightings()
    sightings.note("d1", NOW_MS, "203.0.113.1", "ua", "macos", "1.4.2")
    sightings.note("d1", NOW_MS + 1, "203.0.113.1", "ua")
    sightings.note("d1", NOW_MS + 2, "203.0.113.2", "ua")

    assert sightings.take() == [Sighting("d1", NOW_MS + 2, "203.0.113.2", "ua", "macos", "1.4.2")]


def test_a_clock_that_was_set_back_silences_no_device() -> None:
    sightings = Sightings()
    sightings.note("d1", NOW_MS, "203.0.113.1")
    sightings.take()
    sightings.note("d1", NOW_MS - 3_600_000, "203.0.113.1")

    assert len(sightings) == 1


def test_texts_are_cut_and_the_cut_ones_are_the_same_again() -> None:
    sightings = Sightings()
    sightings.note("d1", NOW_MS, "203.0.113.1", "u" * 300, "p" * 300, "v" * 300)
    (sighting,) = sightings.take()
    sightings.note("d1", NOW_MS, "203.0.113.1", "u" * 300, "p" * 300, "v" * 300)

    assert not sightings.take()
    assert (len(sighting.user_agent), len(sighting.platform), len(sighting.version)) == (
        256,
        64,
        64,
    )


def test_of_too_many_devices_the_newest_are_kept() -> None:
    sightings = Sightings()
    for number in range(MAX_DEVICES + 5):
        sightings.note(f"d{number}", NOW_MS, "203.0.113.1")
    sightings.note("d7", NOW_MS + 1, "203.0.113.2")
    for device_id in ("last but two", "last but one", "last"):
        sightings.note(device_id, NOW_MS + 2, "203.0.113.1")

    assert len(sightings) == MAX_DEVICES
    batches = [sightings.take() for _ in range(MAX_DEVICES // 500)]
    assert {len(batch) for batch in batches} == {500}
    assert not sightings
    noted = [each.device_id for batch in batches for each in batch]
    # d0 to d6 went first, then d8: d7 had called again.
    assert noted[0] == "d9"
    assert noted[-4:] == ["d7", "last but two", "last but one", "last"]


def test_taken_sightings_do_not_count_against_the_others_but_are_remembered() -> None:
    sightings = Sightings()
    for number in range(MAX_DEVICES):
        sightings.note(f"d{number}", NOW_MS, "203.0.113.1")
    assert len(sightings.take(3)) == 3
    assert len(sightings) == MAX_DEVICES - 3
    sightings.note("d0", NOW_MS, "203.0.113.1")
    assert len(sightings) == MAX_DEVICES - 3


def test_the_hot_case_takes_no_memory_and_little_time() -> None:
    sightings = Sightings()
    said = ("d1", NOW_MS + 5, "203.0.113.1", "Application/1.0 (macos)", "macos", "1.4.2")
    sightings.note("d1", NOW_MS, *said[2:])
    sightings.note(*said)
    before = sys.getallocatedblocks()
    for _ in range(1_000):
        sightings.note(*said)
    assert sys.getallocatedblocks() - before < 10
    # 1 µs is meant; ten times that is a machine that is busy.
    assert min(timeit.repeat(lambda: sightings.note(*said), number=1_000, repeat=20)) < 0.01


def test_a_message_says_all_that_a_sighting_says() -> None:
    message = message_from(Sighting("d1", NOW_MS + 123, "2001:db8::1", "ua", "macos", "1.4.2"))

    assert message.seen_at.ToMilliseconds() == NOW_MS + 123
    assert {field.name for field, _ in message.ListFields()} == {
        field.name for field in pb.DeviceSighting.DESCRIPTOR.fields
    }
    assert (message.device_id, message.address) == ("d1", "2001:db8::1")
    assert (message.user_agent, message.platform, message.version) == ("ua", "macos", "1.4.2")


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    await ledger.start()
    yield ledger
    await ledger.die()


def reporter_on(
    directory: Path, address: str, sightings: Sightings, every_seconds: float = 0.02
) -> UsageReporter:
    pace = Pace(gathering=0.01, back_off=0.02, sightings=every_seconds)
    spool, recovered = Spool.open(directory)
    return UsageReporter(
        spool, recovered, [address], "t" * 32, "this-node", pace, sightings=sightings
    )


def note(sightings: Sightings, count: int, start: int = 0) -> list[str]:
    device_ids = [f"d{number}" for number in range(start, start + count)]
    for device_id in device_ids:
        sightings.note(device_id, NOW_MS, "203.0.113.1")
    return device_ids


def seen(ledger: Ledger) -> list[str]:
    return [each.device_id for batch in ledger.batches for each in batch.sightings]


async def test_sightings_are_delivered_without_any_record(tmp_path: Path, ledger: Ledger) -> None:
    sightings = Sightings()
    reporter = reporter_on(tmp_path, ledger.address, sightings)
    reporter.start()
    expected = note(sightings, 1_234)
    await until(lambda: len(seen(ledger)) == 1_234)
    assert seen(ledger) == expected
    assert max(len(batch.sightings) for batch in ledger.batches) == 500
    assert all(not batch.records for batch in ledger.batches)
    assert {batch.node_id for batch in ledger.batches} == {"this-node"}
    assert reporter.unreported_records == 0
    await reporter.aclose(1)


async def test_sightings_travel_with_records(tmp_path: Path, ledger: Ledger) -> None:
    sightings = Sightings()
    expected = note(sightings, 3)
    reporter = reporter_on(tmp_path, ledger.address, sightings, every_seconds=60)
    reporter.record_close(usage_event())
    reporter.start()
    await until(lambda: bool(ledger.batches))
    await reporter.aclose(1)
    assert [(len(each.records), len(each.sightings)) for each in ledger.batches] == [(1, 3)]
    assert seen(ledger) == expected


async def test_sightings_wait_for_their_time(tmp_path: Path, ledger: Ledger) -> None:
    sightings = Sightings()
    reporter = reporter_on(tmp_path, ledger.address, sightings, every_seconds=0.3)
    started = time.monotonic()
    reporter.start()
    note(sightings, 1)
    reporter.record_close(usage_event())
    await until(lambda: reporter.unreported_records == 0)
    if time.monotonic() - started < 0.25:
        assert seen(ledger) == []
    await until(lambda: len(seen(ledger)) == 1)
    assert time.monotonic() - started >= 0.3
    await reporter.aclose(1)


async def test_a_process_that_stops_delivers_what_it_saw(tmp_path: Path, ledger: Ledger) -> None:
    sightings = Sightings()
    reporter = reporter_on(tmp_path, ledger.address, sightings, every_seconds=60)
    reporter.start()
    expected = note(sightings, 700)
    await reporter.aclose(5)
    assert seen(ledger) == expected


async def test_a_process_that_cannot_deliver_stops_all_the_same(
    tmp_path: Path, ledger: Ledger
) -> None:
    await ledger.die()
    sightings = Sightings()
    reporter = reporter_on(tmp_path, ledger.address, sightings)
    reporter.start()
    note(sightings, 10_000)
    started = time.monotonic()
    await reporter.aclose(0.3)
    assert time.monotonic() - started < 2


async def test_sightings_that_are_lost_keep_no_record_back_and_are_not_sent_twice(
    tmp_path: Path, ledger: Ledger
) -> None:
    async def first_dies(request: pb.ReportUsageRequest, context: Context) -> bool:
        if len(ledger.batches) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return True

    ledger.answer = first_dies
    sightings = Sightings()
    note(sightings, 2)
    reporter = reporter_on(tmp_path, ledger.address, sightings)
    event = usage_event()
    reporter.record_close(event)
    reporter.start()
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == [event.request_id]
    assert seen(ledger) == ["d0", "d1"]
    note(sightings, 1, start=2)
    await until(lambda: "d2" in seen(ledger))
    assert seen(ledger) == ["d0", "d1", "d2"]
    await reporter.aclose(1)


async def test_a_batch_of_sightings_alone_is_not_sent_again(tmp_path: Path, ledger: Ledger) -> None:
    async def dies(_request: pb.ReportUsageRequest, context: Context) -> bool:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return True

    ledger.answer = dies
    sightings = Sightings()
    note(sightings, 2)
    reporter = reporter_on(tmp_path, ledger.address, sightings)
    reporter.start()
    await until(lambda: reporter._failures == 1)
    await reporter.aclose(1)
    assert len(ledger.batches) == 1


async def test_sightings_that_the_ledger_never_takes_cost_no_record(
    tmp_path: Path, ledger: Ledger
) -> None:
    async def picky(request: pb.ReportUsageRequest, context: Context) -> bool:
        if request.sightings:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a device makes no sense")
        return True

    ledger.answer = picky
    sightings = Sightings()
    note(sightings, 2)
    reporter = reporter_on(tmp_path, ledger.address, sightings)
    ids = []
    for _ in range(5):
        event = usage_event()
        ids.append(event.request_id)
        reporter.record_close(event)
    reporter.start()
    await until(lambda: len(ledger.batches) >= 1)
    note(sightings, 2, start=2)
    await until(lambda: reporter.unreported_records == 0)
    await until(lambda: "d3" in seen(ledger))
    assert ledger.taken == ids
    assert not (tmp_path / "refused").exists()
    await reporter.aclose(1)


async def test_what_is_seen_during_a_delivery_waits_for_the_next(
    tmp_path: Path, ledger: Ledger
) -> None:
    sightings = Sightings()
    go_on = asyncio.Event()

    async def later(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return await go_on.wait()

    ledger.answer = later
    note(sightings, 2_900)
    reporter = reporter_on(tmp_path, ledger.address, sightings, every_seconds=60)
    reporter.start()
    await until(lambda: len(reporter._backlog.on_the_way) == 4)
    note(sightings, 50, start=2_900)
    go_on.set()
    await until(lambda: len(seen(ledger)) >= 2_900 and not reporter._backlog.on_the_way)
    assert len(seen(ledger)) == 2_900
    assert len(sightings) == 50
    await reporter.aclose(1)
    assert len(seen(ledger)) == 2_950
