"""Sums that something else than the ledger's own code left wrong: they are made anew from the rows."""

import asyncio
import random
import secrets
from collections import Counter as Tally
from collections.abc import Sequence

import pytest
from sqlalchemy import insert, select, update
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.usage_records import row_from_record
from controlplane.store import ledger as ledger_store
from controlplane.store import recounting
from controlplane.store.database import Store
from controlplane.store.ledger import LEDGER
from controlplane.store.recounting import recount
from controlplane.store.usage_totals import TOTALS
from controlplane.store.user_days import DAYS
from tests.ledger.test_ledger import record
from tests.ledger.test_usage_totals import (
    kept_sums,
    ledger_sums,
    random_batches,
    random_record,
    store_batch,
)

Days = dict[tuple[str, str], tuple[int, int, int, int]]
"""By user and day: requests, input and output tokens, nano-USD."""


async def kept_days(store: Store) -> Days:
    """What stands in the table, without days that went elsewhere again."""
    async with store.reading() as session:
        found = await (await session.connection()).execute(select(DAYS))
    days = {
        (row.user_id, row.usage_day): (
            row.requests,
            row.input_tokens,
            row.output_tokens,
            row.charged_nanousd,
        )
        for row in found
    }
    return {key: amounts for key, amounts in days.items() if any(amounts)}


async def ledger_days(store: Store) -> Days:
    """What the rows of the ledger add up to, one by one."""
    async with store.reading() as session:
        rows = (await (await session.connection()).execute(select(LEDGER))).all()
    days: dict[tuple[str, str], Tally[int]] = {}
    for row in rows:
        if row.state != pb.USAGE_STATE_RELEASED:
            amounts = (1, row.input_total_tokens, row.output_tokens, row.charged_nanousd)
            days.setdefault((row.user_id, row.usage_day), Tally()).update(dict(enumerate(amounts)))
    return {key: (sums[0], sums[1], sums[2], sums[3]) for key, sums in days.items()}


async def insert_unseen(store: Store, records: Sequence[pb.UsageRecord]) -> None:
    """Insert rows of the ledger, and move no sum."""
    async with store.ledger() as session:
        await (await session.connection()).execute(
            insert(LEDGER), [row_from_record(each) for each in records]
        )


async def recounted(store: Store) -> int:
    async with store.ledger() as session:
        return await recount(session)


async def are_right(store: Store) -> bool:
    return (await kept_sums(store), await kept_days(store)) == (
        await ledger_sums(store),
        await ledger_days(store),
    )


async def test_sums_that_went_wrong_are_those_of_the_rows_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows are read and sums written in several parts.
    monkeypatch.setattr(recounting, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(recounting, "_SUMS_HELD", 50)
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    for batch in random_batches(chance, requests=60, batches=5):
        await store_batch(store, batch)
    unseen = [random_record(chance, 1) for _ in range(40)]
    for number, each in enumerate(unseen, start=1_000):
        each.request_id = record(number).request_id
    await insert_unseen(store, unseen)
    async with store.ledger() as session:
        connection = await session.connection()
        await connection.execute(update(TOTALS).values(requests=-9))
        await connection.execute(DAYS.delete().where(DAYS.c.user_id == "u1"))
    assert not await are_right(store)

    counted = await recounted(store)

    assert await are_right(store), f"seed {seed}"
    service = "requests", "global", "", 0, "total"
    assert counted >= (await ledger_sums(store)).get(service, 0) > 0, f"seed {seed}"
    # And they move on from there.
    for batch in random_batches(chance, requests=60, batches=3):
        await store_batch(store, batch)
    assert await are_right(store), f"seed {seed}"


async def test_sums_that_are_right_stay_and_an_empty_ledger_has_none(store: Store) -> None:
    assert await recounted(store) == 0
    assert await kept_sums(store) == {}
    lost = record(2, user_id="u", state=pb.USAGE_STATE_ABANDONED, reserved_tokens=4_000)
    released = record(3, user_id="u", state=pb.USAGE_STATE_RELEASED)
    await store_batch(store, [record(1, user_id="u"), lost, released])
    before = await kept_sums(store), await kept_days(store)

    assert await recounted(store) == 2

    assert (await kept_sums(store), await kept_days(store)) == before
    assert before[0]["tokens", "user", "u", 0, "total"] == 4_015


async def test_what_an_older_control_plane_left_abandoned_is_right_once_it_is_settled(
    store: Store,
) -> None:
    lost = record(1, user_id="u", state=pb.USAGE_STATE_ABANDONED, charged_nanousd=5_000)
    await insert_unseen(store, [lost])
    await store_batch(store, [record(1, user_id="u", charged_nanousd=20)])
    spent = "charged_nanousd", "user", "u", 0, "total"
    # It was taken away although it never was added.
    assert (await kept_sums(store))[spent] == 20 - 5_000

    await recounted(store)

    assert (await kept_sums(store))[spent] == 20


async def test_rows_that_come_meanwhile_wait_and_are_counted_once(store: Store) -> None:
    other = Store(store.engine.url)
    lost = record(1, user_id="u", state=pb.USAGE_STATE_ABANDONED, charged_nanousd=5_000)
    await store_batch(store, [lost])
    await insert_unseen(store, [record(2, user_id="u")])

    async with store.ledger() as session:
        assert await recount(session) == 2
        recording = asyncio.create_task(
            store_batch(other, [record(1, user_id="u"), record(3, user_id="u")])
        )
        done, _ = await asyncio.wait([recording], timeout=0.3)
        assert not done
        # Everybody else still sees the sums of before.
        assert (await kept_sums(other))["requests", "user", "u", 0, "total"] == 1

    async with asyncio.timeout(10):
        await recording
    assert await are_right(store)
    assert (await kept_sums(store))["requests", "user", "u", 0, "total"] == 3
    await other.close()


async def test_rows_that_are_about_to_be_committed_are_waited_for(store: Store) -> None:
    other = Store(store.engine.url)
    await insert_unseen(store, [record(2, user_id="u")])

    async with store.ledger() as session:
        await ledger_store.record(session, [row_from_record(record(1, user_id="u"))])
        counting = asyncio.create_task(recounted(other))
        done, _ = await asyncio.wait([counting], timeout=0.3)
        assert not done

    async with asyncio.timeout(10):
        assert await counting == 2
    assert await are_right(store)
    await other.close()


async def test_sums_are_right_whoever_records_and_recounts_at_the_same_time(store: Store) -> None:
    """Also on PostgreSQL, which refuses one of two transactions that wait for each other."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    other = Store(store.engine.url)
    batches = random_batches(chance, requests=60, batches=20)

    async def tell(control_plane: Store, told: list[list[pb.UsageRecord]]) -> None:
        for batch in told:
            await store_batch(control_plane, batch)

    async def count(control_plane: Store) -> None:
        for _ in range(5):
            await recounted(control_plane)

    async with asyncio.timeout(30):
        await asyncio.gather(
            tell(store, batches), tell(other, batches[::-1]), count(store), count(other)
        )

    assert await are_right(store), f"seed {seed}"
    await other.close()


async def test_a_recount_that_does_not_end_changes_nothing(store: Store) -> None:
    await store_batch(store, [record(1, user_id="u")])
    await insert_unseen(store, [record(2, user_id="u")])
    before = await kept_sums(store), await kept_days(store)

    async def end_half_way() -> None:
        async with store.ledger() as session:
            await recount(session)
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        await end_half_way()

    assert (await kept_sums(store), await kept_days(store)) == before
    assert await recounted(store) == 2
