"""What a user used, asked of a control plane that plays a script."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from dataplane.control import user_usage
from dataplane.control.user_usage import UsageTotals, UserUsage, UserUsageClient
from dataplane.domain.refusals import Reason, Refusal
from tests.control.scripted_ledger import NODE_TOKEN, ScriptedLedger
from tests.control.usage_events import until

DAY, MONTH = "20261121", "202611"


@dataclass
class Clock:
    """Moved by hand."""

    seconds: float = 100.0

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def asking(*ledgers: ScriptedLedger, clock: Clock) -> AsyncIterator[UserUsageClient]:
    client = UserUsageClient([each.address for each in ledgers], NODE_TOKEN, clock)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger() -> AsyncIterator[ScriptedLedger]:
    async with ScriptedLedger() as each:
        yield each


@pytest.fixture
async def client(ledger: ScriptedLedger, clock: Clock) -> AsyncIterator[UserUsageClient]:
    async with asking(ledger, clock=clock) as each:
        yield each


async def refused(asked: Coroutine[Any, Any, UserUsage]) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await asked
    assert refusal.value.reason is Reason.CONTROL_PLANE_UNAVAILABLE
    assert refusal.value.retry_after_seconds == 5
    return refusal.value


async def test_the_figures_are_those_of_the_ledger_for_the_day_that_was_asked_for(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.usage = pb.UserUsage(
        total=pb.UsageTotals(requests=4, input_tokens=40, output_tokens=400, charged_nanousd=2**53),
        month=pb.UsageTotals(requests=3),
        day=pb.UsageTotals(requests=1),
        last_24h=pb.UsageTotals(requests=2),
    )

    usage = await client.usage_of("u1", DAY, MONTH)

    assert usage == UserUsage(
        UsageTotals(4, 40, 400, 2**53), UsageTotals(3), UsageTotals(1), UsageTotals(2)
    )
    [asked] = ledger.asked
    assert (asked.user_id, asked.usage_day, asked.usage_month) == ("u1", DAY, MONTH)
    assert ledger.tokens == {f"Bearer {NODE_TOKEN}"}


async def test_an_answer_is_good_for_a_second(
    ledger: ScriptedLedger, client: UserUsageClient, clock: Clock
) -> None:
    first = await client.usage_of("u1", DAY, MONTH)
    ledger.usage.total.requests = 7
    clock.seconds += 0.999
    again = await client.usage_of("u1", DAY, MONTH)
    other = await client.usage_of("u2", DAY, MONTH)

    clock.seconds += 0.001
    later = await client.usage_of("u1", DAY, MONTH)

    assert (first.total.requests, again.total.requests) == (0, 0)
    assert (other.total.requests, later.total.requests) == (7, 7)
    assert [each.user_id for each in ledger.asked] == ["u1", "u2", "u1"]


async def test_a_day_that_begins_is_not_answered_with_yesterday(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    await client.usage_of("u1", "20261130", "202611")
    await client.usage_of("u1", "20261201", "202612")

    assert [each.usage_day for each in ledger.asked] == ["20261130", "20261201"]


async def test_those_who_ask_for_one_user_at_once_share_one_question(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    asking = [asyncio.create_task(client.usage_of("u1", DAY, MONTH)) for _ in range(50)]
    await until(lambda: bool(ledger.asked))

    ledger.gate.set()
    answers = await asyncio.gather(*asking)

    assert len({id(each) for each in answers}) == 1
    assert len(ledger.asked) == 1


async def test_an_asker_that_leaves_takes_the_answer_from_nobody(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    first = asyncio.create_task(client.usage_of("u1", DAY, MONTH))
    await until(lambda: bool(ledger.asked))
    second = asyncio.create_task(client.usage_of("u1", DAY, MONTH))
    await asyncio.sleep(0)

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    ledger.gate.set()

    assert await second == await client.usage_of("u1", DAY, MONTH)
    assert len(ledger.asked) == 1


async def test_what_everybody_left_is_remembered_all_the_same(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    only = asyncio.create_task(client.usage_of("u1", DAY, MONTH))
    await until(lambda: bool(ledger.asked))
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only

    ledger.gate.set()
    await client.usage_of("u1", DAY, MONTH)

    assert len(ledger.asked) == 1


async def test_at_most_twenty_questions_are_under_way(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    asking = [asyncio.create_task(client.usage_of(f"u{n}", DAY, MONTH)) for n in range(60)]
    await until(lambda: ledger.at_once == 20)

    ledger.gate.set()
    await asyncio.gather(*asking)

    assert ledger.most_at_once == 20
    assert len(ledger.asked) == 60


async def test_no_more_than_a_thousand_may_wait(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    asking = [asyncio.create_task(client.usage_of(f"u{n}", DAY, MONTH)) for n in range(1_000)]
    await until(lambda: ledger.at_once == 20)

    # At once, not at the end of a deadline.
    async with asyncio.timeout(1.0):
        await refused(client.usage_of("one too many", DAY, MONTH))

    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_no_more_than_a_thousand_answers_are_remembered(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    for start in range(0, 1_001, 91):
        users = [f"u{number}" for number in range(start, start + 91)]
        await asyncio.gather(*(client.usage_of(user, DAY, MONTH) for user in users))
    asked = len(ledger.asked)

    await client.usage_of(ledger.asked[-1].user_id, DAY, MONTH)
    assert len(ledger.asked) == asked
    await client.usage_of(ledger.asked[0].user_id, DAY, MONTH)
    assert len(ledger.asked) == asked + 1


async def test_while_the_control_plane_is_away_callers_come_back_later_and_then_get_an_answer(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    await ledger.die()
    with capture_logs() as logs:
        for _ in range(3):
            refusal = await refused(client.usage_of("u1", DAY, MONTH))
    assert [each["event"] for each in logs] == ["user_usage_unavailable"]
    assert ledger.address not in refusal.message

    await ledger.start()

    async with asyncio.timeout(5):
        while True:
            try:
                await client.usage_of("u1", DAY, MONTH)
                break
            except Refusal:
                await asyncio.sleep(0.02)
    assert len(ledger.asked) == 1


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_a_control_plane_that_cannot_answer_counts_as_away(
    ledger: ScriptedLedger, client: UserUsageClient, code: grpc.StatusCode
) -> None:
    ledger.refusal = code

    with capture_logs() as logs:
        refusal = await refused(client.usage_of("u1", DAY, MONTH))

    assert "as the test wants it" not in refusal.message
    assert logs[0]["code"] == code.name
    ledger.refusal = None
    await client.usage_of("u1", DAY, MONTH)


async def test_another_control_plane_is_asked_in_the_place_of_one_that_is_away(
    ledger: ScriptedLedger, clock: Clock
) -> None:
    async with ScriptedLedger() as gone:
        await gone.die()
        async with asking(gone, ledger, clock=clock) as client:
            await client.usage_of("u1", DAY, MONTH)
            await gone.start()
            await client.usage_of("u2", DAY, MONTH)

        assert len(ledger.asked) == 2
        assert gone.asked == []


async def test_one_that_stays_silent_is_given_up_in_time_and_left_for_another(
    ledger: ScriptedLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert user_usage.DEADLINE_SECONDS == 2.0
    monkeypatch.setattr(user_usage, "DEADLINE_SECONDS", 0.1)
    async with ScriptedLedger() as silent:
        silent.gate.clear()
        async with asking(silent, ledger, clock=clock) as client:
            await refused(client.usage_of("u1", DAY, MONTH))
            await client.usage_of("u1", DAY, MONTH)

        await until(lambda: silent.at_once == 0)
        assert (len(silent.asked), len(ledger.asked)) == (1, 1)


async def test_closing_ends_what_is_asked_and_refuses_from_then_on(
    ledger: ScriptedLedger, client: UserUsageClient
) -> None:
    ledger.gate.clear()
    asking = asyncio.create_task(client.usage_of("u1", DAY, MONTH))
    await until(lambda: bool(ledger.asked))

    await client.aclose()

    await refused(_of(asking))
    await refused(client.usage_of("u2", DAY, MONTH))


async def _of(task: "asyncio.Task[UserUsage]") -> UserUsage:
    return await task


@pytest.mark.parametrize("addresses", [[], ["192.0.2.1:50051"], ["127.0.0.1:1", "example.com:1"]])
def test_the_nodes_token_does_not_leave_the_machine_in_clear(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match="control plane"):
        UserUsageClient(addresses, NODE_TOKEN)
