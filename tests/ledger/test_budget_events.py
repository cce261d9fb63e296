"""When budgets were used to 80 and 100 percent, as nodes report it beside usage."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlmodel import select
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.usage_budget_events import rows_from_budget_events
from controlplane.store import budget_events
from controlplane.store.database import Store
from controlplane.store.tables import BudgetEventRow
from tests.ledger.conftest import LedgerServer
from tests.ledger.test_ledger import record, timestamp

REACHED = datetime(2026, 11, 21, 12, tzinfo=UTC)


def counter(**values: Any) -> limits_pb2.Counter:
    given: dict[str, Any] = {
        "subject_kind": limits_pb2.SUBJECT_KIND_USER,
        "subject_id": "aaaaaaaaaaaa",
        "unit": limits_pb2.LIMIT_UNIT_SPEND,
        "window": limits_pb2.LIMIT_WINDOW_MONTH,
        "period_id": "202611",
    }
    return limits_pb2.Counter(**(given | values))


def event(percent: int = 80, after_s: int = 0, **values: Any) -> pb.BudgetEvent:
    given: dict[str, Any] = {
        "counter": counter(),
        "capacity_nanousd": 1_000,
        "settled_nanousd": 790,
        "held_nanousd": 10,
        "reached_at": timestamp(REACHED + timedelta(seconds=after_s)),
    }
    return pb.BudgetEvent(percent=percent, **(given | values))


async def tell(
    ledger: LedgerServer, *batches: Sequence[pb.BudgetEvent], records: Sequence[pb.UsageRecord] = ()
) -> list[int]:
    """Report batches of events on one stream; return the acknowledged ids."""

    async def requests() -> AsyncIterator[pb.ReportUsageRequest]:
        for batch_id, events in enumerate(batches, start=1):
            yield pb.ReportUsageRequest(batch_id=batch_id, records=records, budget_events=events)

    async with asyncio.timeout(20):
        return [answer.batch_id async for answer in ledger.node.ReportUsage(requests())]


async def kept(store: Store) -> list[BudgetEventRow]:
    async with store.reading() as session:
        return list((await session.exec(select(BudgetEventRow))).all())


async def test_an_event_is_kept_as_it_was_told(ledger: LedgerServer, store: Store) -> None:
    assert await tell(ledger, [event()], [], [event(100)]) == [1, 2, 3]

    first, second = sorted(await kept(store), key=lambda row: row.percent)
    assert (first.subject_kind, first.subject_id, first.period_id) == (3, "aaaaaaaaaaaa", "202611")
    assert (first.percent, first.capacity_nanousd) == (80, 1_000)
    assert (first.settled_nanousd, first.held_nanousd) == (790, 10)
    assert first.reached_at == REACHED
    assert second.percent == 100


async def test_of_each_counter_and_percent_the_first_that_is_told_stands(
    ledger: LedgerServer, store: Store
) -> None:
    await tell(ledger, [event(settled_nanousd=1), event(settled_nanousd=2)], [event(after_s=-9)])

    others = [
        event(100),
        event(counter=counter(reset_generation=1)),
        event(counter=counter(period_id="202612")),
        event(counter=counter(subject_id="bbbbbbbbbbbb")),
        event(counter=counter(subject_kind=limits_pb2.SUBJECT_KIND_KEY)),
    ]
    await tell(ledger, others, others)

    rows = await kept(store)
    assert len(rows) == 1 + len(others)
    assert rows[0].settled_nanousd == 1


async def test_control_planes_that_are_told_the_same_in_any_order_keep_it_once(
    store: Store,
) -> None:
    other = Store(store.engine.url)
    rows = rows_from_budget_events(
        [event(counter=counter(subject_id=f"user{n:08}")) for n in range(50)]
    )

    async def record_in(control_plane: Store, order: int) -> None:
        async with control_plane.ledger() as session:
            await budget_events.record(session, rows[::order])

    async with asyncio.timeout(30):
        await asyncio.gather(
            *(record_in(each, order) for each in (store, other) for order in (1, -1) * 4)
        )

    assert len(await kept(store)) == 50
    await other.close()


@pytest.mark.parametrize(
    "values",
    [
        {"percent": 79},
        {"percent": 0},
        {"counter": counter(unit=limits_pb2.LIMIT_UNIT_TOKENS)},
        {"counter": counter(unit=17)},
        {"counter": counter(subject_kind=0)},
        {"counter": counter(subject_id="")},
        {"counter": counter(subject_id="a\0b")},
        {"counter": counter(period_id="20261121")},
        {"counter": counter(period_id="")},
        {"counter": counter(reset_generation=-1)},
        {"counter": counter(reset_generation=2**53 + 1)},
        {"counter": None},
        {"capacity_nanousd": -1},
        {"settled_nanousd": 2**53 + 1},
        {"held_nanousd": -1},
        {"reached_at": None},
        {"reached_at": Timestamp(seconds=2**40)},
    ],
    ids=repr,
)
async def test_an_event_that_makes_no_sense_ends_the_stream_and_nothing_of_its_batch_is_kept(
    ledger: LedgerServer, store: Store, values: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await tell(ledger, [event(100), event(**values)], records=[record()])

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await kept(store) == []


async def test_a_batch_has_at_most_five_hundred_events(ledger: LedgerServer, store: Store) -> None:
    many = [event(counter=counter(subject_id=f"user{n:08}")) for n in range(501)]
    assert await tell(ledger, many[:500]) == [1]

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await tell(ledger, many)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(await kept(store)) == 500
