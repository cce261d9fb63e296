"""What subjects used by period: sums that are kept, and are always what the rows of the ledger add up to."""

import asyncio
import random
import secrets
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.usage_records import row_from_record
from controlplane.store import ledger as ledger_store
from controlplane.store.database import Store
from controlplane.store.ledger import LEDGER
from controlplane.store.usage_totals import TOTALS
from tests.ledger.test_ledger import record

STATES = [pb.USAGE_STATE_SETTLED, pb.USAGE_STATE_RELEASED, pb.USAGE_STATE_ABANDONED]
REQUESTS, TOKENS, SPEND = "requests", "tokens", "charged_nanousd"
UNITS = (REQUESTS, TOKENS, SPEND)
# As layers are called.
WORDS = {REQUESTS: "requests", TOKENS: "tokens", SPEND: "spend"}
KINDS = ["global", "organization", "user", "key", "device", "ip", "endpoint", "model"]

Sums = dict[tuple[str, str, str, int, str], int]
"""By unit, kind, id, generation and period."""


def layer(kind: str, unit: str, window: str) -> str:
    joint = "_" if window == "total" else "_per_"
    return f"{kind}_{WORDS[unit]}{joint}{window}"


def some_generations(chance: random.Random) -> list[pb.CountedGeneration]:
    """Now and then a few counters were reset, also one that has no sum."""
    if chance.random() < 0.5:
        return []
    names = [
        layer(chance.choice(KINDS), chance.choice(UNITS), chance.choice(["day", "month", "total"]))
        for _ in range(chance.randrange(1, 12))
    ]
    return [
        pb.CountedGeneration(layer=name, reset_generation=chance.randrange(1, 3))
        for name in {*names, "user_requests_per_minute"}
    ]


def random_record(chance: random.Random, requests: int) -> pb.UsageRecord:
    day, month = chance.choice(
        [("20261031", "202610"), ("20261120", "202611"), ("20261121", "202611")]
    )
    is_device = chance.random() < 0.3
    return record(
        chance.randrange(requests),
        state=chance.choice(STATES),
        organization_id=chance.choice(["o1", "o2"]),
        user_id=chance.choice(["u1", "u2", ""]),
        key_id="" if is_device else chance.choice(["k1", "k2"]),
        device_id="d1" if is_device else "",
        endpoint=chance.choice(["chat", "embeddings"]),
        model=chance.choice(["gpt-4o-mini", "claude:latest", ""]),
        address_subjects=chance.choice([[], ["00ff00ff00ff00ff"], ["00ff00ff00ff00ff", "free-1"]]),
        usage_day=day,
        usage_month=month,
        service_day=chance.choice(["20261031", "20261120", "20261121"]),
        generations=some_generations(chance),
        input_total_tokens=chance.randrange(100),
        output_tokens=chance.randrange(100),
        reserved_tokens=chance.randrange(1_000),
        charged_nanousd=chance.randrange(10**9),
    )


def random_batches(chance: random.Random, requests: int, batches: int) -> list[list[Any]]:
    """Batches in which the same requests come again and again, with other states, subjects and amounts."""
    return [
        [random_record(chance, requests) for _ in range(chance.randrange(30))]
        for _ in range(batches)
    ]


async def kept_sums(store: Store) -> Sums:
    """What stands in the table, without what went elsewhere again."""
    async with store.reading() as session:
        found = await (await session.connection()).execute(select(TOTALS))
    return {
        (
            unit,
            KINDS[row.subject_kind - 1],
            row.subject_id,
            row.reset_generation,
            row.period_id,
        ): amount
        for row in found
        for unit in UNITS
        if (amount := getattr(row, unit))
    }


async def ledger_sums(store: Store) -> Sums:
    """What the rows of the ledger add up to, one by one."""
    async with store.reading() as session:
        rows = (await (await session.connection()).execute(select(LEDGER))).all()
    sums: Tally[tuple[str, str, str, int, str]] = Tally()
    for row in rows:
        if row.state == pb.USAGE_STATE_RELEASED:
            continue
        is_abandoned = row.state == pb.USAGE_STATE_ABANDONED
        used = row.input_total_tokens + row.output_tokens
        amounts = {
            REQUESTS: 1,
            TOKENS: row.reserved_tokens if is_abandoned else used,
            SPEND: row.charged_nanousd,
        }
        generations = {each["layer"]: each["reset_generation"] for each in row.generations}
        own = {"day": row.usage_day, "month": row.usage_month, "total": "total"}
        service = {"day": row.service_day, "month": row.service_day[:6], "total": "total"}
        subjects = [
            ("global", "", service),
            ("organization", row.organization_id, own),
            ("user", row.user_id, own),
            ("key", row.key_id, own),
            ("device", row.device_id, own),
            *(("ip", each, service) for each in row.address_subjects),
            ("endpoint", row.endpoint, service),
            ("model", row.model, service),
        ]
        for kind, subject_id, periods in subjects:
            if subject_id or kind == "global":
                for window, period_id in periods.items():
                    for unit, amount in amounts.items():
                        generation = generations.get(layer(kind, unit, window), 0)
                        sums[unit, kind, subject_id, generation, period_id] += amount
    return {key: amount for key, amount in sums.items() if amount}


async def store_batch(store: Store, batch: Sequence[pb.UsageRecord]) -> None:
    async with store.ledger() as session:
        await ledger_store.record(session, [row_from_record(each) for each in batch])


@pytest.mark.parametrize("_attempt", range(3))
async def test_the_kept_sums_are_those_of_the_rows_whatever_is_said_how_often(
    store: Store, _attempt: int
) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)

    for batch in random_batches(chance, requests=60, batches=10):
        await store_batch(store, batch)

        assert await kept_sums(store) == await ledger_sums(store), f"seed {seed}"


async def test_a_month_is_the_sum_of_its_days(store: Store) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    for batch in random_batches(chance, requests=100, batches=10):
        for each in batch:
            del each.generations[:]
        await store_batch(store, batch)

    sums = await kept_sums(store)

    months: Tally[tuple[str, str, str, str]] = Tally()
    for (unit, kind, subject_id, _, period_id), amount in sums.items():
        if len(period_id) == 8:
            months[unit, kind, subject_id, period_id[:6]] += amount
    assert months, f"seed {seed}"
    assert months == {
        (unit, kind, subject_id, period_id): amount
        for (unit, kind, subject_id, _, period_id), amount in sums.items()
        if len(period_id) == 6
    }, f"seed {seed}"


async def test_control_planes_that_are_told_the_same_at_the_same_time_count_it_once(
    store: Store,
) -> None:
    """Also on PostgreSQL, which refuses one of two transactions that wait for each other."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    other = Store(store.engine.url)
    batches = random_batches(chance, requests=40, batches=15)

    async def tell(control_plane: Store, told: list[list[pb.UsageRecord]]) -> None:
        for batch in told:
            await store_batch(control_plane, chance.sample(batch, len(batch)))

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


async def test_batches_that_share_subjects_in_any_order_do_not_wait_for_each_other(
    store: Store,
) -> None:
    """On PostgreSQL, which refuses one of two transactions that do; they share no request and no user."""
    other = Store(store.engine.url)
    batches = [
        [
            record(at * 1_000 + n, user_id=f"u{at}-{n}", key_id=f"k{n}", device_id=f"d{n}")
            for n in range(60)
        ][:: 1 if at % 2 else -1]
        for at in range(16)
    ]

    async with asyncio.timeout(30):
        await asyncio.gather(
            *(store_batch((store, other)[at // 2 % 2], batch) for at, batch in enumerate(batches))
        )

    assert await kept_sums(store) == await ledger_sums(store)
    await other.close()


async def test_each_unit_counts_in_the_generation_in_which_it_was_admitted(store: Store) -> None:
    await store_batch(
        store,
        [
            record(1, user_id="u", charged_nanousd=30),
            record(
                2,
                user_id="u",
                charged_nanousd=500,
                generations=[
                    pb.CountedGeneration(layer="user_spend_per_month", reset_generation=3),
                    pb.CountedGeneration(layer="user_tokens_total", reset_generation=1),
                ],
            ),
        ],
    )

    sums = await kept_sums(store)

    assert sums[SPEND, "user", "u", 0, "202611"] == 30
    assert sums[SPEND, "user", "u", 3, "202611"] == 500
    assert sums[SPEND, "user", "u", 0, "20261121"] == 530
    assert sums[REQUESTS, "user", "u", 0, "202611"] == 2
    assert sums[TOKENS, "user", "u", 0, "total"] == sums[TOKENS, "user", "u", 1, "total"] == 15


async def test_who_died_is_counted_at_what_it_reserved_until_the_true_figures_come(
    store: Store,
) -> None:
    lost: dict[str, Any] = {"user_id": "u", "reserved_tokens": 4_000}
    await store_batch(
        store, [record(1, state=pb.USAGE_STATE_ABANDONED, charged_nanousd=900, **lost)]
    )
    before = await kept_sums(store)

    await store_batch(store, [record(1, charged_nanousd=20, **lost)] * 2)

    after = await kept_sums(store)
    user = "user", "u", 0, "202611"
    assert [before[unit, *user] for unit in UNITS] == [1, 4_000, 900]
    assert [after[unit, *user] for unit in UNITS] == [1, 15, 20]


async def test_a_released_request_counts_for_nobody(store: Store) -> None:
    await store_batch(store, [record(1, user_id="u", state=pb.USAGE_STATE_RELEASED)])

    assert await kept_sums(store) == {}
