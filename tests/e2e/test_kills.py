"""Programs that are killed, stopped and restarted under load: no request fails that need not, none is lost or doubled."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from tests.e2e.accidents import await_dataplane
from tests.e2e.calls import Answer, Client, Streams, client_of
from tests.e2e.conftest import SETTINGS
from tests.e2e.customers import Customer, new_customer, prices_of
from tests.e2e.leaks import leaks
from tests.e2e.stack import Stack
from tests.e2e.waiting import eventually, eventually_async

CALLERS = 6
# A sixth of a second long.
QUICK = "mock-tokens-4-pace-40"
# Three seconds: longer than it takes to find its process and kill it.
LONG = "mock-tokens-150-pace-20"
# Two seconds until the restart, or four after a second death in a row, and the start itself.
RESTART_S = 40.0


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose programs may be killed; each test leaves it serving."""
    running = Stack(tmp_path_factory.mktemp("mortal"), environ=SETTINGS)
    yield running
    running.stop()
    assert leaks(running) == []


@pytest.fixture
def caller(mortal: Stack) -> Customer:
    return new_customer(
        mortal,
        *("--daily-requests", "none", "--daily-tokens", "none"),
        *("--requests-per-minute", "none", "--monthly-budget-usd", "100"),
    )


async def test_kill_9_of_the_control_plane_under_load_fails_no_request_and_the_ledger_has_each_once(
    mortal: Stack, caller: Customer
) -> None:
    is_over = asyncio.Event()
    former = mortal.controlplane_pid()
    async with client_of(caller.api_key) as client:
        load = [
            asyncio.create_task(calls_until(is_over, client, mortal.base_urls[number % 2]))
            for number in range(CALLERS)
        ]
        os.kill(former, signal.SIGKILL)
        await eventually_async(lambda: is_back(mortal, former), RESTART_S)
        is_over.set()
        answers = [answer for each in await asyncio.gather(*load) for answer in each]

    assert Counter((answer.status, answer.is_whole) for answer in answers) == {
        (200, True): len(answers)
    }
    rows = await asyncio.to_thread(caller.ledger, len(answers))
    assert Counter(row["id"] for row in rows) == Counter(answer.request_id for answer in answers)
    assert {row["state"] for row in rows} == {"settled"}
    month = caller.month()
    assert (month.settled, month.held) == (sum(prices_of(rows)), 0)


async def calls_until(is_over: asyncio.Event, client: Client, base_url: str) -> list[Answer]:
    answers: list[Answer] = []
    while not is_over.is_set():
        answers.append(await client.chat(base_url, model=QUICK, stream=len(answers) % 2 == 0))
    return answers


async def is_back(stack: Stack, former: int) -> bool:
    try:
        return stack.controlplane_pid() != former
    except FileNotFoundError:
        return False


async def test_a_data_plane_that_restarts_while_the_control_plane_is_stopped_serves_what_it_knew(
    mortal: Stack, caller: Customer
) -> None:
    base_url = mortal.base_urls[0]
    revoked = new_customer(mortal)
    async with client_of(caller.api_key) as client:
        assert (await client.chat(base_url, api_key=revoked.api_key)).status == 200
        controlplane, former = mortal.controlplane_pid(), mortal.dataplane_pid(0)
        receipt = mortal.tollkeeper("key", "revoke", revoked.key, "--wait", "10s")
        # Nothing is waited for: the receipt says that it is on the disk.
        os.kill(former, signal.SIGKILL)
        os.kill(controlplane, signal.SIGSTOP)
        try:
            assert receipt["missing"] == []
            await asyncio.to_thread(await_dataplane, mortal, 0, former)
            answers = [await client.chat(base_url, stream=stream) for stream in (False, True)]
            refused = await client.chat(base_url, api_key=revoked.api_key)
        finally:
            os.kill(controlplane, signal.SIGCONT)

    assert [(answer.status, answer.is_whole) for answer in answers] == [(200, True)] * 2
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    # What was used meanwhile gets there, from the process that used it.
    rows = caller.ledger(2)
    assert {row["id"] for row in rows} == {answer.request_id for answer in answers}
    assert {row["node"] for row in rows} == {"dev-1"}


async def test_kill_9_of_a_data_plane_mid_stream_leaves_exactly_one_row_for_every_admitted_request(
    mortal: Stack, caller: Customer
) -> None:
    base_url = mortal.base_urls[0]
    former = mortal.dataplane_pid(0)
    async with client_of(caller.api_key) as client:
        whole = [await client.chat(base_url, stream=True) for _ in range(5)]
        streams = Streams(client, base_url, LONG, 12)
        await streams.all_started()
        assert caller.month().held > 0

        os.kill(former, signal.SIGKILL)
        cut = await streams.answers()
        await asyncio.to_thread(await_dataplane, mortal, 0, former)
        whole += [await client.chat(base_url) for _ in range(3)]

    assert [(answer.status, answer.is_whole) for answer in cut] == [(200, False)] * 12
    rows = caller.ledger(20)
    states = {row["id"]: row["state"] for row in rows}
    assert states == {
        **{answer.request_id: "abandoned" for answer in cut},
        **{answer.request_id: "settled" for answer in whole},
    }
    # Nobody knows what they used: they are charged what was reserved.
    for row in rows:
        if row["state"] == "abandoned":
            assert row["charged_nanousd"] == row["reserved_nanousd"] > 0
    charged = sum(row["charged_nanousd"] for row in rows)
    eventually(lambda: caller.month().held == 0)
    assert caller.month().settled == charged


async def test_sigterm_to_a_data_plane_lets_20_open_streams_finish_and_settles_them(
    mortal: Stack, caller: Customer
) -> None:
    base_url = mortal.base_urls[1]
    former = mortal.dataplane_pid(1)
    async with client_of(caller.api_key) as client:
        streams = Streams(client, base_url, LONG, 20)
        await streams.all_started()

        os.kill(former, signal.SIGTERM)
        answers = await streams.answers()
        await asyncio.to_thread(await_dataplane, mortal, 1, former)
        after = await client.chat(base_url)

    assert [(answer.status, answer.is_whole) for answer in answers] == [(200, True)] * 20
    assert {len(answer.text) for answer in answers} == {150 * 4}
    assert after.status == 200
    rows = caller.ledger(21)
    assert {(row["state"], row["source"]) for row in rows} == {("settled", "reported")}
    month = caller.month()
    assert (month.settled, month.held) == (sum(prices_of(rows)), 0)


def test_a_data_plane_that_stops_in_order_takes_itself_off_the_list_of_nodes(mortal: Stack) -> None:
    former = mortal.dataplane_pid(0)
    with redis.Redis.from_url(mortal.line["redis_url"]) as client:

        def is_listed() -> bool:
            return bool(client.hexists("tk:1:{g}:nodes", "dev-1"))

        eventually(is_listed)
        os.kill(former, signal.SIGTERM)
        eventually(lambda: not is_listed())
        await_dataplane(mortal, 0, former)
        eventually(is_listed)
