"""What a user used: sums that are kept by day, and are always what the ledger adds up to."""

import asyncio
import random
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import pytest
from sqlalchemy import func, select
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.domain.usage import UsageState
from controlplane.rpc.usage_records import row_from_record
from controlplane.store import ledger as ledger_store
from controlplane.store.database import Store
from controlplane.store.ledger import LEDGER
from controlplane.store.user_days import DAYS
from tests.ledger.conftest import LedgerServer
from tests.ledger.test_ledger import record, report, request_id, timestamp

STATES = [pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_ABANDONED]
TODAY, MONTH = "20261121", "202611"


def used(
    requests: int = 0, input_tokens: int = 0, output_tokens: int = 0, charged: int = 0
) -> pb.UsageTotals:
    return pb.UsageTotals(
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        charged_nanousd=charged,
    )


def random_batches(chance: random.Random, requests: int, batches: int) -> list[list[Any]]:
    """Batches in which the same requests come again and again, with other states, users, days and amounts."""

    def one() -> pb.UsageRecord:
        return record(
            chance.randrange(requests),
            state=chance.choice(STATES),
            user_id=chance.choice(["u1", "u2", ""]),
            usage_day=chance.choice(["20261031", "20261120", TODAY, ""]),
            input_total_tokens=chance.randrange(100),
            output_tokens=chance.randrange(100),
            charged_nanousd=chance.randrange(10**9),
        )

    return [[one() for _ in range(chance.randrange(30))] for _ in range(batches)]


async def kept_sums(store: Store) -> dict[tuple[str, str], tuple[int, ...]]:
    """What stands in the sums; a day of which everything went to another one counts nothing and is left out."""
    async with store.reading() as session:
        found = await (await session.connection()).execute(select(DAYS))
    sums = {(row.user_id, row.usage_day): tuple(row[2:]) for row in found}
    return {key: values for key, values in sums.items() if any(values)}


async def ledger_sums(store: Store) -> dict[tuple[str, str], tuple[int, ...]]:
    """What the ledger adds up to."""
    amounts = [
        func.sum(LEDGER.c[name])
        for name in ("input_total_tokens", "output_tokens", "charged_nanousd")
    ]
    statement = (
        select(LEDGER.c.user_id, LEDGER.c.usage_day, func.count(), *amounts)
        .where(LEDGER.c.state != int(UsageState.RELEASED))
        .group_by(LEDGER.c.user_id, LEDGER.c.usage_day)
    )
    async with store.reading() as session:
        found = await (await session.connection()).execute(statement)
    return {(user, day): tuple(int(value) for value in sums) for user, day, *sums in found}


async def store_batch(store: Store, batch: Sequence[pb.UsageRecord]) -> None:
    async with store.ledger() as session:
        await ledger_store.record(session, [row_from_record(each) for each in batch])


async def usage_of(ledger: LedgerServer, user_id: str, **question: str) -> pb.UserUsage:
    asked = {"usage_day": TODAY, "usage_month": MONTH} | question
    answer = await ledger.node.GetUserUsage(
        pb.GetUserUsageRequest(user_id=user_id, **asked), timeout=10
    )
    assert isinstance(answer, pb.UserUsage)
    return answer


@pytest.mark.parametrize("_attempt", range(4))
async def test_the_kept_sums_are_those_of_the_ledger_whatever_is_said_how_often(
    store: Store, _attempt: int
) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)

    for batch in random_batches(chance, requests=60, batches=15):
        await store_batch(store, batch)

        assert await kept_sums(store) == await ledger_sums(store), f"seed {seed}"


async def test_control_planes_that_are_told_the_same_at_the_same_time_count_it_once(
    store: Store,
) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    other = Store(store.engine.url)
    batches = random_batches(chance, requests=40, batches=25)

    async def tell(control_plane: Store, told: list[list[pb.UsageRecord]]) -> None:
        for batch in told:
            await store_batch(control_plane, batch)

    async with asyncio.timeout(30):
        await asyncio.gather(
            *(
                tell(control_plane, chance.sample(batches, len(batches)))
                for control_plane in (store, other, store, other)
            )
        )

    sums = await ledger_sums(store)
    assert sums
    assert await kept_sums(store) == sums, f"seed {seed}"
    await other.close()


async def test_a_request_that_many_settle_at_the_same_time_moves_once(store: Store) -> None:
    others = [Store(store.engine.url) for _ in range(3)]
    stores = [store, *others]
    numbers = range(20)

    async def settle(control_plane: Store) -> None:
        batch = [record(n, user_id=f"u{n % 3}", charged_nanousd=30) for n in numbers]
        await store_batch(control_plane, batch)

    for attempt in range(5):
        numbers = range(attempt * 100, attempt * 100 + 20)
        lost = [record(n, user_id="u0", state=pb.USAGE_STATE_ABANDONED) for n in numbers]
        await store_batch(store, lost)
        async with asyncio.timeout(30):
            await asyncio.gather(*(settle(each) for each in stores * 2))
        assert await kept_sums(store) == await ledger_sums(store)

    for other in others:
        await other.close()


async def test_batches_in_any_order_do_not_wait_for_each_other(store: Store) -> None:
    """On PostgreSQL, which refuses one of two transactions that do."""
    other = Store(store.engine.url)
    for attempt in range(4):
        batch = [
            record(attempt * 1_000 + n, user_id=f"u{n % 50}", usage_day="") for n in range(400)
        ]
        async with asyncio.timeout(30):
            await asyncio.gather(
                *(
                    store_batch(each, batch[::direction])
                    for each in (store, other)
                    for direction in (1, -1, 1, -1)
                )
            )
        fresh = [
            [record(attempt * 1_000 + 500 + n + at * 50, user_id=f"u{n}") for n in range(50)]
            for at in range(6)
        ]
        async with asyncio.timeout(30):
            await asyncio.gather(
                *(
                    store_batch((store, other)[at % 2], told if at % 3 else told[::-1])
                    for at, told in enumerate(fresh)
                )
            )

    assert await kept_sums(store) == await ledger_sums(store)
    await other.close()


async def test_a_user_sees_the_day_the_month_the_last_24_hours_and_everything(
    ledger: LedgerServer, store: Store
) -> None:
    now = store.clock()
    store.clock = lambda: now
    recent, old = timestamp(now - timedelta(hours=24)), timestamp(now - timedelta(hours=25))
    alice: dict[str, Any] = {"user_id": "alice", "started_at": recent}
    await report(
        ledger,
        [
            record(1, **alice, charged_nanousd=1),
            record(2, **alice | {"started_at": old}, usage_day="20261101", charged_nanousd=2),
            record(3, **alice | {"started_at": old}, usage_day="20261031", charged_nanousd=4),
            record(4, **alice, usage_day="20261201", charged_nanousd=8),
            record(5, **alice, state=pb.USAGE_STATE_RELEASED, charged_nanousd=16),
            record(6, user_id="bob", started_at=recent, charged_nanousd=32),
        ],
    )

    found = await usage_of(ledger, "alice")

    assert found.day == used(1, 10, 5, 1)
    assert found.month == used(2, 20, 10, 1 + 2)
    assert found.last_24h == used(2, 20, 10, 1 + 8)
    assert found.total == used(4, 40, 20, 1 + 2 + 4 + 8)


async def test_the_true_figures_of_an_abandoned_request_take_the_place_of_its_reserve(
    ledger: LedgerServer,
) -> None:
    lost = record(1, user_id="u", state=pb.USAGE_STATE_ABANDONED, charged_nanousd=900)
    await report(ledger, [lost])
    assert (await usage_of(ledger, "u")).day == used(1, 10, 5, 900)

    settled = record(1, user_id="u", usage_day="20261122", output_tokens=7, charged_nanousd=30)
    await report(ledger, [settled], [settled, lost])

    found = await usage_of(ledger, "u")
    assert found.day == used()
    assert found.month == found.total == used(1, 10, 7, 30)


async def test_a_batch_that_is_refused_counts_nowhere(ledger: LedgerServer) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await report(ledger, [record(1, user_id="u"), record(2, user_id="u", state=77)])

    assert (await usage_of(ledger, "u")).total == used()


@pytest.mark.parametrize("user_id", ["", "nobody", "' OR 1=1 --"])
async def test_a_user_without_requests_has_zeros(ledger: LedgerServer, user_id: str) -> None:
    await report(ledger, [record(1, user_id="alice")])

    assert await usage_of(ledger, user_id) == pb.UserUsage(
        total=used(), month=used(), day=used(), last_24h=used()
    )


@pytest.mark.parametrize(
    "question",
    [
        {"usage_day": ""},
        {"usage_day": "2026-11-21"},
        {"usage_month": ""},
        {"usage_month": "2026%"},
        {"user_id": "a\0b"},
    ],
    ids=repr,
)
async def test_a_question_that_makes_no_sense_is_refused(
    ledger: LedgerServer, question: dict[str, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await usage_of(ledger, **{"user_id": "u"} | question)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_ledger_that_is_away_is_said_so(ledger: LedgerServer, store: Store) -> None:
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE usage_days RENAME TO elsewhere")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await usage_of(ledger, "u")
    finally:
        async with store.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO usage_days")

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "elsewhere" not in (refused.value.details() or "")


async def test_one_request_twice_in_a_batch_counts_once(store: Store) -> None:
    row = row_from_record(record(1, user_id="u"))
    async with store.ledger() as session:
        await ledger_store.record(session, [row, row, dict(row)])

    assert await kept_sums(store) == {("u", TODAY): (1, 10, 5, 900)}
    assert row["request_id"] == request_id(1)
