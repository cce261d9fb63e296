"""Delivery of usage: every request at least once, whatever happens to the control plane."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest
from structlog.testing import capture_logs
from tollkeeper.common.v1 import rates_pb2
from tollkeeper.config.v1 import resources_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.bills import Reporter
from dataplane.control.spool import Spool
from dataplane.control.spool_recovery import Recovered
from dataplane.control.usage import Pace, UsageReporter
from dataplane.control.usage_records import DIALECTS, SOURCES, STATES, record_from
from dataplane.domain.calls import Dialect, UsageSource, UsageState
from tests.control.ledger import Context, Ledger, take
from tests.control.reporters import NODE_TOKEN, close, reporter_on
from tests.control.usage_events import until, usage_event


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    await ledger.start()
    yield ledger
    await ledger.die()


async def test_every_request_is_delivered_in_order_and_leaves_the_disk(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    opened = usage_event(UsageState.ABANDONED)
    reporter.record_open(opened)
    ids = close(reporter, 1_234)
    reporter.record_close(usage_event(request=opened.request_id))
    reporter.flush()
    assert reporter.unreported_records == 1_235
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == [*ids, opened.request_id]
    assert max(len(batch.records) for batch in ledger.batches) == 500
    assert [batch.batch_id for batch in ledger.batches] == [1, 2, 3]
    assert {batch.node_id for batch in ledger.batches} == {"this-node"}
    assert ledger.tokens == {f"Bearer {NODE_TOKEN}"}
    await reporter.aclose(1)
    assert os.listdir(tmp_path) == ["lock"]


async def test_requests_that_end_together_share_a_batch(tmp_path: Path, ledger: Ledger) -> None:
    reporter = reporter_on(tmp_path, ledger.address, pace=Pace(gathering=0.2))
    reporter.start()
    for _ in range(5):
        close(reporter, 1)
        await asyncio.sleep(0)
    await until(lambda: reporter.unreported_records == 0)
    assert [len(batch.records) for batch in ledger.batches] == [5]
    await reporter.aclose(1)


async def test_what_was_not_acknowledged_is_sent_again_after_the_server_died(
    tmp_path: Path, ledger: Ledger
) -> None:
    async def first_only(request: pb.ReportUsageRequest, _context: Context) -> bool:
        return request.batch_id == 1

    ledger.answer = first_only
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    ids = close(reporter, 1_300)
    await until(lambda: len(ledger.batches) == 3 and reporter.unreported_records == 800)
    await ledger.die()
    ledger.answer = take
    await ledger.start()
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == ids
    assert ledger.streams == 2
    await reporter.aclose(1)


async def test_at_most_four_batches_are_on_the_way(tmp_path: Path, ledger: Ledger) -> None:
    go_on = asyncio.Event()

    async def later(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return await go_on.wait()

    ledger.answer = later
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    ids = close(reporter, 3_000)
    await until(lambda: len(reporter._backlog.on_the_way) == 4)
    await until(lambda: len(ledger.batches) == 1)
    assert len(reporter._backlog.waiting) == 1_000
    go_on.set()
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == ids
    await reporter.aclose(1)


async def test_a_control_plane_that_says_nothing_is_left_for_the_next(
    tmp_path: Path, ledger: Ledger
) -> None:
    async def silent(_request: pb.ReportUsageRequest, _context: Context) -> bool:
        return False

    other = Ledger()
    await other.start()
    ledger.answer = silent
    pace = Pace(gathering=0.01, acknowledgement=0.2, back_off=0.02)
    reporter = reporter_on(tmp_path, ledger.address, other.address, pace=pace)
    reporter.start()
    ids = close(reporter, 3)
    await until(lambda: reporter.unreported_records == 0)
    assert other.taken == ids
    assert len(ledger.batches) == 1
    await reporter.aclose(1)
    await other.die()


async def test_an_acknowledgement_out_of_order_counts_for_nothing(
    tmp_path: Path, ledger: Ledger
) -> None:
    taken = 0

    async def ahead(request: pb.ReportUsageRequest, context: Context) -> bool:
        nonlocal taken
        taken += 1
        request.batch_id += taken == 1
        return True

    ledger.answer = ahead
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    with capture_logs() as logs:
        ids = close(reporter, 2)
        await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == ids * 2
    assert "usage_acknowledgement_unexpected" in [entry["event"] for entry in logs]
    await reporter.aclose(1)


async def test_usage_of_an_outage_is_delivered_after_it_from_memory_and_disk(
    tmp_path: Path, ledger: Ledger
) -> None:
    await ledger.die()
    reporter = reporter_on(tmp_path, ledger.address, max_events_in_memory=600)
    reporter.start()
    ids = close(reporter, 1_700)
    assert sum(event is not None for event in reporter._backlog.waiting.values()) == 600
    await until(lambda: reporter._failures >= 3)
    await ledger.start()
    ids += close(reporter, 1)
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == ids
    assert reporter._backlog.in_memory == 0
    await reporter.aclose(1)


async def test_what_an_earlier_process_left_is_delivered(tmp_path: Path, ledger: Ledger) -> None:
    spool, _ = Spool.open(tmp_path)
    finished, died = usage_event(), usage_event(UsageState.ABANDONED)
    spool.append_open(died)
    spool.append_close(finished)
    await spool.aclose()
    reporter = reporter_on(tmp_path, ledger.address)
    assert reporter.unreported_records == 2
    reporter.start()
    await until(lambda: reporter.unreported_records == 0)
    records = {record.request_id: record for batch in ledger.batches for record in batch.records}
    assert records == {event.request_id: record_from(event) for event in (finished, died)}
    assert records[died.request_id].state == pb.USAGE_STATE_ABANDONED
    await reporter.aclose(1)
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered()
    await spool.aclose()


async def test_an_abandoned_request_stays_abandoned_when_nobody_could_be_told(
    tmp_path: Path,
) -> None:
    spool, _ = Spool.open(tmp_path)
    died = usage_event(UsageState.ABANDONED)
    spool.append_open(died)
    await spool.aclose()
    reporter = reporter_on(tmp_path, "127.0.0.1:1")
    await reporter.aclose(0)
    spool, recovered = Spool.open(tmp_path)
    assert recovered == Recovered((), (died.request_id,))
    await spool.aclose()


async def test_closing_delivers_what_it_can_and_leaves_the_rest(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address, pace=Pace(gathering=0.05))
    reporter.start()
    ids = close(reporter, 10)
    await reporter.aclose(5)
    assert ledger.taken == ids
    await ledger.die()
    reporter = reporter_on(tmp_path, ledger.address)
    reporter.start()
    rest = close(reporter, 10)
    await reporter.aclose(0.05)
    spool, recovered = Spool.open(tmp_path)
    assert list(recovered.closes) == rest
    await spool.aclose()


async def test_a_record_that_the_ledger_never_takes_is_put_aside_and_the_others_arrive(
    tmp_path: Path, ledger: Ledger
) -> None:
    bad: set[str] = set()

    async def picky(request: pb.ReportUsageRequest, context: Context) -> bool:
        if bad & {record.request_id for record in request.records}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ip makes no sense")
        return True

    ledger.answer = picky
    reporter = reporter_on(tmp_path, ledger.address)
    ids = close(reporter, 40)
    bad |= {ids[3], ids[20]}
    reporter.start()
    await until(lambda: reporter.unreported_records == 0)
    ids += close(reporter, 2)
    await until(lambda: reporter.unreported_records == 0)
    assert ledger.taken == [request_id for request_id in ids if request_id not in bad]
    assert len(ledger.batches[-1].records) == 2
    refused = (tmp_path / "refused").read_bytes()
    assert [name for name in ids if name.encode() in refused] == [ids[3], ids[20]]
    await reporter.aclose(1)


async def test_endless_texts_are_cut_and_a_batch_stays_small(
    tmp_path: Path, ledger: Ledger
) -> None:
    reporter = reporter_on(tmp_path, ledger.address)
    text = "\N{SNOWMAN}" * 2_000
    for _ in range(500):
        long = msgspec.structs.replace(
            usage_event(),
            client_request_id=text,
            organization=text,
            user=text,
            key=text,
            router=text,
            requested_model=text,
        )
        reporter.record_close(long)
    reporter.flush()
    reporter.start()
    await until(lambda: reporter.unreported_records == 0)
    assert len(ledger.taken) == 500
    assert 3 <= len(ledger.batches) <= 6
    assert max(batch.ByteSize() for batch in ledger.batches) < 2_100_000
    await reporter.aclose(1)


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "controlplane:50051", "0.0.0.0:1"])
async def test_a_token_does_not_leave_this_machine_in_clear(tmp_path: Path, address: str) -> None:
    spool, recovered = Spool.open(tmp_path)
    with pytest.raises(ValueError, match="only loopback"):
        UsageReporter(spool, recovered, ["127.0.0.1:1", address], NODE_TOKEN, "node")
    await spool.aclose()


async def test_a_full_spool_makes_the_reporter_full(tmp_path: Path) -> None:
    spool, recovered = Spool.open(tmp_path, capacity_bytes=2_000)
    reporter: Reporter = UsageReporter(spool, recovered, ["127.0.0.1:1"], NODE_TOKEN, "node")
    assert not reporter.is_full
    close(reporter, 3)
    assert reporter.is_full
    await spool.aclose()


def test_a_record_says_all_that_an_event_says() -> None:
    event = usage_event()
    record = record_from(event)
    absent = {"device_id", "is_cached"}
    fields = {field.name for field in pb.UsageRecord.DESCRIPTOR.fields}
    assert {field.name for field, _ in record.ListFields()} == fields - absent
    values: dict[str, Any] = {name: getattr(event, name) for name in event.__struct_fields__}
    used = values.pop("usage")
    values |= {field.name: getattr(used, field.name) for field in dataclasses.fields(used)}
    nested = {"generations", "address_subjects", "layers", "rates"}
    others = {"state", "source", "dialect", "started_at", "is_failover", "is_degraded"}
    plain = fields - absent - nested - others
    assert {name: getattr(record, name) for name in plain} == {name: values[name] for name in plain}
    texts_and_numbers = [values[name] for name in plain - {"stream"}]
    assert len(set(texts_and_numbers)) == len(texts_and_numbers)
    assert record.state == pb.USAGE_STATE_SETTLED
    assert record.source == pb.USAGE_SOURCE_PARTIAL
    assert record.dialect == resources_pb2.DIALECT_ANTHROPIC
    assert record.started_at.ToMilliseconds() == event.started_at_ms
    assert [(each.layer, each.reset_generation) for each in record.generations] == [
        ("user_requests_per_day", 3)
    ]
    assert record.address_subjects == ["127.0.0.9", "127.0.0.0/24"]
    assert record.layers == pb.TriedLayers(
        names=["user_requests_per_day", "organization_spend_per_month"],
        capacities=[116, 119],
        reserved=[117, 120],
        remaining=[118, 121],
        shadow=[0],
        soft=[1],
    )
    assert record.rates == rates_pb2.Rates(
        input_nanousd_per_million=123,
        output_nanousd_per_million=124,
        cache_read_nanousd_per_million=125,
        cache_write_5m_nanousd_per_million=126,
        cache_write_1h_nanousd_per_million=127,
        request_nanousd=128,
    )
    assert not record_from(msgspec.structs.replace(event, rates=None)).HasField("rates")
    assert record.is_degraded
    assert record.is_failover
    assert not record_from(msgspec.structs.replace(event, attempts=1)).is_failover


@pytest.mark.parametrize(
    ("table", "ours", "prefix", "theirs"),
    [
        (STATES, UsageState, "USAGE_STATE_", pb.UsageState),
        (SOURCES, UsageSource, "USAGE_SOURCE_", pb.UsageSource),
        (DIALECTS, Dialect, "DIALECT_", resources_pb2.Dialect),
    ],
)
def test_tables_name_every_value_of_both_sides_alike(
    table: dict[Any, int], ours: Any, prefix: str, theirs: Any
) -> None:
    named = {each: f"{prefix}{each.value.upper() or 'UNSPECIFIED'}" for each in ours}
    assert {each: theirs.Name(number) for each, number in table.items()} == named
    assert set(theirs.values()) - {0} == set(table.values()) - {0}
