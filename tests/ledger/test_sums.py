"""What data planes ask the ledger about counters, requests and each other."""

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
import pytest
from sqlalchemy import insert
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import config_service_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.domain.errors import OverloadedError
from controlplane.rpc import usage_sums
from controlplane.store.database import Store
from controlplane.store.usage_totals import TOTALS
from tests.distribution.node import eventually
from tests.ledger.conftest import LedgerServer
from tests.ledger.test_ledger import record, report, request_id

USER, KEY, GLOBAL = (
    limits_pb2.SUBJECT_KIND_USER,
    limits_pb2.SUBJECT_KIND_KEY,
    limits_pb2.SUBJECT_KIND_GLOBAL,
)
REQUESTS, TOKENS, SPEND = (
    limits_pb2.LIMIT_UNIT_REQUESTS,
    limits_pb2.LIMIT_UNIT_TOKENS,
    limits_pb2.LIMIT_UNIT_SPEND,
)
DAY, MONTH, TOTAL = (
    limits_pb2.LIMIT_WINDOW_DAY,
    limits_pb2.LIMIT_WINDOW_MONTH,
    limits_pb2.LIMIT_WINDOW_TOTAL,
)


def counter(**values: Any) -> limits_pb2.Counter:
    given: dict[str, Any] = {
        "subject_kind": USER,
        "subject_id": "alice",
        "unit": SPEND,
        "window": MONTH,
        "period_id": "202611",
    }
    return limits_pb2.Counter(**(given | values))


def kind(subject_kind: int, unit: int, window: int) -> pb.CounterKind:
    return pb.CounterKind(subject_kind=subject_kind, unit=unit, window=window)  # type: ignore[arg-type]  # numbers of the enums


async def amounts(ledger: LedgerServer, *counters: limits_pb2.Counter) -> list[int]:
    answer = await ledger.node.SumUsage(pb.SumUsageRequest(counters=counters), timeout=10)
    return list(answer.amounts)


async def batches(ledger: LedgerServer, **question: Any) -> list[pb.ListSumsResponse]:
    call = ledger.node.ListSums(pb.ListSumsRequest(**question), timeout=20)
    return [batch async for batch in call]


async def sums(ledger: LedgerServer, **question: Any) -> dict[tuple[Any, ...], int]:
    """Sums by kind, id, unit, window, period and generation."""
    found = [each for batch in await batches(ledger, **question) for each in batch.sums]
    by_counter = {
        (
            each.counter.subject_kind,
            each.counter.subject_id,
            each.counter.unit,
            each.counter.window,
            each.counter.period_id,
            each.counter.reset_generation,
        ): each.amount
        for each in found
    }
    assert len(by_counter) == len(found)
    return by_counter


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


@pytest.fixture
async def used(ledger: LedgerServer) -> LedgerServer:
    """A ledger in which two users used something, one of them after a reset."""
    reset = [pb.CountedGeneration(layer="user_spend_per_month", reset_generation=2)]
    await report(
        ledger,
        [
            record(1, user_id="alice", key_id="k1", charged_nanousd=100),
            record(2, user_id="alice", key_id="k1", charged_nanousd=30, generations=reset),
            record(3, user_id="bob", usage_day="20261120", charged_nanousd=0),
        ],
    )
    return ledger


async def test_amounts_come_in_the_order_of_the_counters(used: LedgerServer) -> None:
    found = await amounts(
        used,
        counter(),
        counter(subject_id="nobody"),
        counter(reset_generation=2),
        counter(reset_generation=1),
        counter(unit=REQUESTS),
        counter(unit=TOKENS, window=TOTAL, period_id="total"),
        counter(subject_kind=GLOBAL, subject_id="", window=DAY, period_id="20261121"),
        counter(subject_kind=KEY, subject_id="k1"),
        counter(subject_kind=KEY, subject_id="alice"),
        counter(),
    )

    assert found == [100, 0, 30, 0, 2, 30, 130, 130, 0, 100]


async def test_no_counters_have_no_amounts(used: LedgerServer) -> None:
    assert await amounts(used) == []


async def test_a_thousand_counters_of_a_thousand_periods_are_one_question(
    used: LedgerServer,
) -> None:
    days = [f"2026{n:04}" for n in range(1_000)]

    found = await amounts(used, *(counter(window=DAY, period_id=day) for day in days))

    assert found == [0] * 1_000


@pytest.mark.parametrize(
    "values",
    [
        {"subject_kind": 0},
        {"subject_kind": 99},
        {"subject_id": ""},
        {"subject_id": "a\0b"},
        {"subject_id": "x" * 201},
        {"subject_kind": GLOBAL, "subject_id": "x"},
        {"unit": limits_pb2.LIMIT_UNIT_PARALLEL},
        {"unit": 0},
        {"window": DAY},
        {"window": limits_pb2.LIMIT_WINDOW_MINUTE},
        {"window": limits_pb2.LIMIT_WINDOW_RATE},
        {"period_id": ""},
        {"period_id": "2026-11"},
        {"period_id": "all"},
        {"reset_generation": -1},
    ],
    ids=repr,
)
async def test_a_counter_without_a_sum_is_refused(
    ledger: LedgerServer, values: dict[str, Any]
) -> None:
    refused = await code_of(amounts(ledger, counter(), counter(**values)))

    assert refused == grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_wanted_is_listed_and_nothing_else(used: LedgerServer) -> None:
    found = await sums(
        used,
        kinds=[kind(USER, SPEND, MONTH), kind(USER, REQUESTS, DAY), kind(KEY, TOKENS, TOTAL)] * 2,
        period_ids=["20261121", "202611", "202611", "202612", "total"],
    )

    assert found == {
        (USER, "alice", SPEND, MONTH, "202611", 0): 100,
        (USER, "alice", SPEND, MONTH, "202611", 2): 30,
        (USER, "alice", REQUESTS, DAY, "20261121", 0): 2,
        (KEY, "k1", TOKENS, TOTAL, "total", 0): 30,
    }


async def test_of_some_subjects_only_theirs_are_listed(used: LedgerServer) -> None:
    question: dict[str, Any] = {
        "kinds": [kind(USER, REQUESTS, MONTH), kind(KEY, REQUESTS, MONTH)],
        "period_ids": ["202611"],
    }

    def only(*subjects: tuple[int, str]) -> list[pb.SubjectRef]:
        return [
            pb.SubjectRef(subject_kind=each, subject_id=subject_id)  # type: ignore[arg-type]  # a number of the enum
            for each, subject_id in subjects
        ]

    assert await sums(used, **question, subjects=only((USER, "bob"), (KEY, "bob"))) == {
        (USER, "bob", REQUESTS, MONTH, "202611", 0): 1
    }
    assert await sums(used, **question, subjects=only((GLOBAL, ""))) == {}


async def test_nothing_is_listed_of_no_kinds_or_no_periods(used: LedgerServer) -> None:
    assert await sums(used) == {}
    assert await sums(used, kinds=[kind(USER, SPEND, MONTH)]) == {}
    assert await sums(used, kinds=[kind(USER, SPEND, MONTH)], period_ids=["20261121"]) == {}


async def many(store: Store, subjects: Iterable[int]) -> None:
    async with store.ledger() as session:
        connection = await session.connection()
        rows = [
            {
                "period_id": "202611",
                "subject_kind": USER,
                "subject_id": f"user{number:06}",
                "reset_generation": 0,
                "requests": 1,
                "tokens": 2,
                "charged_nanousd": 3,
            }
            for number in subjects
        ]
        await connection.execute(insert(TOTALS), rows)


async def test_many_sums_come_in_batches_of_at_most_a_thousand(
    ledger: LedgerServer, store: Store
) -> None:
    await many(store, range(2_500))

    found = await batches(
        ledger,
        kinds=[kind(USER, REQUESTS, MONTH), kind(USER, SPEND, MONTH)],
        period_ids=["202611"],
    )

    assert max(len(batch.sums) for batch in found) == 1_000
    assert sum(each.amount for batch in found for each in batch.sums) == 2_500 * (1 + 3)


async def test_a_list_that_nobody_reads_gives_its_connection_back_and_says_so_in_the_end(
    ledger: LedgerServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await many(store, range(8_000))
    monkeypatch.setattr(usage_sums, "LIST_DEADLINE_S", 0.3)
    question = pb.ListSumsRequest(kinds=[kind(USER, SPEND, MONTH)], period_ids=["202611"])
    nobody: Any = None  # Any: the servicer does not look at its context
    answers = ledger.reports.ListSums(question, nobody)
    pool: Any = store.engine.pool  # Any: that of either database

    read = [await anext(answers)]
    assert pool.checkedout() == 1
    await eventually(lambda: pool.checkedout() == 0)
    with pytest.raises(OverloadedError):
        read += [each async for each in answers]

    assert sum(len(each.sums) for each in read) < 8_000


@pytest.mark.parametrize(
    "question",
    [
        {"kinds": [kind(USER, limits_pb2.LIMIT_UNIT_PARALLEL, MONTH)]},
        {"kinds": [kind(USER, SPEND, limits_pb2.LIMIT_WINDOW_MINUTE)]},
        {"kinds": [kind(9, SPEND, MONTH)]},
        {"kinds": [kind(USER, SPEND, MONTH)] * 101},
        {"period_ids": ["2026"]},
        {"period_ids": ["202611"] * 101},
        {"subjects": [pb.SubjectRef(subject_kind=USER)]},
        {"subjects": [pb.SubjectRef(subject_kind=USER, subject_id="u")] * 1_001},
    ],
    ids=lambda question: next(iter(question)),
)
async def test_a_list_that_makes_no_sense_is_refused(
    ledger: LedgerServer, question: dict[str, Any]
) -> None:
    assert await code_of(batches(ledger, **question)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_records_are_found_in_whatever_state(ledger: LedgerServer) -> None:
    await report(
        ledger,
        [
            record(1, state=pb.USAGE_STATE_RELEASED),
            record(2),
            record(3, state=pb.USAGE_STATE_ABANDONED),
        ],
    )

    asked = [request_id(n) for n in (4, 3, 2, 1, 0)]
    found = await ledger.node.FindRecords(pb.FindRecordsRequest(request_ids=asked), timeout=10)

    assert list(found.request_ids) == [request_id(n) for n in (3, 2, 1)]


@pytest.mark.parametrize(
    "asked", [["x"], [""], ["a\0b"], [request_id(1)] * 1_001], ids=["x", "empty", "nul", "many"]
)
async def test_what_is_no_request_cannot_be_asked_for(
    ledger: LedgerServer, asked: list[str]
) -> None:
    call = ledger.node.FindRecords(pb.FindRecordsRequest(request_ids=asked), timeout=10)

    assert await code_of(call) == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_thousand_and_one_counters_are_too_many(ledger: LedgerServer) -> None:
    refused = await code_of(amounts(ledger, *[counter()] * 1_001))

    assert refused == grpc.StatusCode.INVALID_ARGUMENT


async def test_reporters_are_the_connected_data_planes(ledger: LedgerServer) -> None:
    for node_id in ("node-2", "node-1"):
        ledger.fleet.attach(config_service_pb2.Hello(node_id=node_id, boot_id="b"))

    found = await ledger.node.ListReporters(pb.ListReportersRequest(), timeout=10)

    assert list(found.node_ids) == ["node-1", "node-2"]


async def test_sums_of_a_ledger_that_is_away_are_said_so(
    ledger: LedgerServer, store: Store
) -> None:
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE usage_totals RENAME TO elsewhere")
    try:
        refused = [
            await code_of(amounts(ledger, counter())),
            await code_of(batches(ledger, kinds=[kind(USER, SPEND, MONTH)], period_ids=["202611"])),
        ]
    finally:
        async with store.engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO usage_totals")

    assert refused == [grpc.StatusCode.UNAVAILABLE] * 2
