"""What the ledger says of counters, asked of control planes that play a script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control.counter_messages import counter_to_proto
from dataplane.control.sums import LedgerClient
from dataplane.domain.counters import (
    CounterKind,
    CounterName,
    CounterSum,
    LedgerUnavailable,
    SubjectName,
)
from dataplane.domain.limiting import SubjectKind, Unit, Window
from tests.control.reporters import NODE_TOKEN
from tests.control.scripted_sums import ScriptedSums

KIND = CounterKind(SubjectKind.USER, Unit.TOKENS, Window.DAY)


@asynccontextmanager
async def asking(*addresses: str, call_seconds: float = 5.0) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(addresses, NODE_TOKEN, call_seconds)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def ledger() -> AsyncIterator[ScriptedSums]:
    async with ScriptedSums() as each:
        yield each


def counter(subject_id: str) -> CounterName:
    return CounterName(SubjectKind.USER, subject_id, Unit.TOKENS, Window.DAY, "20261121", 2)


def batch(*amounts: int) -> pb.ListSumsResponse:
    return pb.ListSumsResponse(
        sums=[
            pb.CounterSum(counter=counter_to_proto(counter(f"u{amount}")), amount=amount)
            for amount in amounts
        ]
    )


async def test_sums_come_in_the_order_of_their_counters_however_many_there_are(
    ledger: ScriptedSums,
) -> None:
    ledger.amounts = {f"u{number}": number for number in range(2_500)}
    async with asking(ledger.address) as client:
        found = await client.sums([counter(f"u{number}") for number in range(2_499, -1, -1)])
        assert await client.sums([counter("nobody")]) == [0]
        assert await client.sums([]) == []

    assert found == list(range(2_499, -1, -1))
    assert [len(each.counters) for each in ledger.asked] == [1_000, 1_000, 500, 1]
    assert ledger.asked[0].counters[0] == limits_pb2.Counter(
        subject_kind=limits_pb2.SUBJECT_KIND_USER,
        subject_id="u2499",
        unit=limits_pb2.LIMIT_UNIT_TOKENS,
        window=limits_pb2.LIMIT_WINDOW_DAY,
        period_id="20261121",
        reset_generation=2,
    )
    assert ledger.tokens == {f"Bearer {NODE_TOKEN}"}
    assert len(ledger.peers) == 1


async def test_all_sums_of_some_kinds_come_in_batches(ledger: ScriptedSums) -> None:
    ledger.batches_of_sums = [batch(1, 2), batch(3)]
    async with asking(ledger.address) as client:
        found = [each async for each in client.list_sums([KIND], ["20261121", "total"])]

    assert found == [
        [CounterSum(counter("u1"), 1), CounterSum(counter("u2"), 2)],
        [CounterSum(counter("u3"), 3)],
    ]
    [asked] = ledger.asked
    assert list(asked.kinds) == [
        pb.CounterKind(
            subject_kind=limits_pb2.SUBJECT_KIND_USER,
            unit=limits_pb2.LIMIT_UNIT_TOKENS,
            window=limits_pb2.LIMIT_WINDOW_DAY,
        )
    ]
    assert (list(asked.period_ids), list(asked.subjects)) == (["20261121", "total"], [])


async def test_sums_of_many_subjects_are_asked_for_in_parts(ledger: ScriptedSums) -> None:
    subjects = [SubjectName(SubjectKind.USER, f"u{number}") for number in range(1_500)]
    ledger.batches_of_sums = [batch(1)]
    async with asking(ledger.address) as client:
        found = [each async for each in client.list_sums([KIND], ["total"], subjects)]

    assert [len(each.subjects) for each in ledger.asked] == [1_000, 500]
    assert ledger.asked[1].subjects[0] == pb.SubjectRef(
        subject_kind=limits_pb2.SUBJECT_KIND_USER, subject_id="u1000"
    )
    assert len(found) == 2


async def test_without_a_kind_or_a_period_there_are_no_sums(ledger: ScriptedSums) -> None:
    ledger.batches_of_sums = [batch(1)]
    async with asking(ledger.address) as client:
        assert [each async for each in client.list_sums([], ["total"])] == []
        assert [each async for each in client.list_sums([KIND], [])] == []
    assert ledger.asked == []


async def test_counters_of_a_newer_control_plane_are_left_out(ledger: ScriptedSums) -> None:
    newer = batch(1, 2)
    newer.sums[0].counter.unit = 99  # type: ignore[assignment] # that is the point
    ledger.batches_of_sums = [newer]
    async with asking(ledger.address) as client:
        found = [each async for each in client.list_sums([KIND], ["total"])]
    assert found == [[CounterSum(counter("u2"), 2)]]


async def test_records_that_the_ledger_has_are_known(ledger: ScriptedSums) -> None:
    names = [f"r{number}" for number in range(1_200)]
    ledger.stored = {"r0", "r1100", "other"}
    async with asking(ledger.address) as client:
        assert await client.known(names) == {"r0", "r1100"}
        assert await client.known([]) == set()
    assert [len(each.request_ids) for each in ledger.asked] == [1_000, 200]


async def test_reporters_are_those_of_every_control_plane_that_answers(
    ledger: ScriptedSums,
) -> None:
    ledger.node_ids = ["a", "b"]
    async with ScriptedSums() as other:
        other.node_ids = ["b", "c"]
        async with asking(ledger.address, other.address) as client:
            assert await client.reporters() == {"a", "b", "c"}
            await other.die()
            assert await client.reporters() == {"a", "b"}
            await ledger.die()
            with pytest.raises(LedgerUnavailable):
                await client.reporters()


async def test_a_control_plane_that_is_away_is_left_for_the_next(ledger: ScriptedSums) -> None:
    ledger.amounts = {"u1": 1}
    ledger.batches_of_sums = [batch(7)]
    async with ScriptedSums() as away:
        await away.die()
        async with asking(away.address, ledger.address) as client:
            assert await client.sums([counter("u1")]) == [1]
            found = [each async for each in client.list_sums([KIND], ["total"])]
    assert found == [[CounterSum(counter("u7"), 7)]]


async def test_a_control_plane_that_says_nothing_is_left_for_the_next_and_not_asked_again(
    ledger: ScriptedSums,
) -> None:
    ledger.amounts = {"u1": 1}
    async with ScriptedSums() as silent:
        silent.gate.clear()
        async with asking(silent.address, ledger.address, call_seconds=0.2) as client:
            assert await client.sums([counter("u1")]) == [1]
            assert await client.sums([counter("u1")]) == [1]
        assert len(silent.asked) == 1
        silent.gate.set()


async def _first(sums: AsyncIterator[list[CounterSum]]) -> object:
    return await anext(sums)


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.sums([counter("u1")]),
        lambda client: client.known(["r1"]),
        lambda client: _first(client.list_sums([KIND], ["total"])),
        lambda client: client.reporters(),
    ],
    ids=["sums", "known", "list", "reporters"],
)
async def test_when_nobody_answers_the_question_fails_in_time(
    ledger: ScriptedSums, ask: Callable[[LedgerClient], Awaitable[object]]
) -> None:
    ledger.gate.clear()
    async with asking(ledger.address, call_seconds=0.1) as client, asyncio.timeout(5):
        with pytest.raises(LedgerUnavailable):
            await ask(client)
    ledger.gate.set()


async def test_a_refusal_is_told_without_what_the_control_plane_says(ledger: ScriptedSums) -> None:
    ledger.refusal = grpc.StatusCode.PERMISSION_DENIED
    async with asking(ledger.address) as client:
        with pytest.raises(LedgerUnavailable, match="PERMISSION_DENIED") as caught:
            await client.sums([counter("u1")])
    assert "as the test wants it" not in str(caught.value)


async def test_sums_that_break_off_are_no_sums(ledger: ScriptedSums) -> None:
    ledger.batches_of_sums = [batch(1), batch(2)]
    ledger.refusal, ledger.refuse_after = grpc.StatusCode.UNAVAILABLE, 1
    async with asking(ledger.address) as client:
        sums = client.list_sums([KIND], ["total"])
        assert await anext(sums) == [CounterSum(counter("u1"), 1)]
        with pytest.raises(LedgerUnavailable, match="broke off"):
            await anext(sums)


async def test_sums_that_fall_silent_on_the_way_fail_in_time(ledger: ScriptedSums) -> None:
    ledger.batches_of_sums, ledger.holds_from = [batch(1), batch(2)], 1
    async with asking(ledger.address, call_seconds=0.2) as client:
        sums = client.list_sums([KIND], ["total"])
        assert await anext(sums) == [CounterSum(counter("u1"), 1)]
        with pytest.raises(LedgerUnavailable, match="no answer in time"):
            await anext(sums)


async def test_a_list_that_is_left_early_is_ended(ledger: ScriptedSums) -> None:
    ledger.batches_of_sums, ledger.holds_from = [batch(1), batch(2)], 1
    async with asking(ledger.address) as client:
        async with aclosing(client.list_sums([KIND], ["total"])) as sums:
            assert await anext(sums)
        assert await client.sums([counter("u1")]) == [0]


async def test_an_answer_of_another_length_is_none(ledger: ScriptedSums) -> None:
    async def SumUsage(request: pb.SumUsageRequest, context: object) -> pb.SumUsageResponse:  # noqa: N802
        return pb.SumUsageResponse(amounts=[1])

    await ledger.die()
    ledger.SumUsage = SumUsage  # type: ignore[method-assign] # a faulty control plane
    await ledger.start()
    async with asking(ledger.address) as client:
        with pytest.raises(LedgerUnavailable):
            await client.sums([counter("u1"), counter("u2")])


@pytest.mark.parametrize("addresses", [[], ["10.0.0.1:50051"]])
def test_a_token_does_not_leave_this_machine_in_clear(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match=r"loopback|address"):
        LedgerClient(addresses, NODE_TOKEN)
