"""The node that charges what others left is killed, too, and so is the next one: no row is lost, none is there twice.

victim dies ─ first: charged in Redis, dies ─ second: told the ledger, dies ─ third: forgotten
"""

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tollkeeper.admin.v1.operations_service_pb2 import CounterVerification

from tests.crashes.books import Books, read_books
from tests.crashes.points import Point
from tests.crashes.stack import Customer, Node, Stack, stack_in
from tests.e2e.calls import client_of

BUDGET_NANOUSD = 10**9
# Streams that are open for longer than all of this takes.
LONG = "mock-tokens-20000-pace-5"


@dataclass(frozen=True, slots=True)
class Moment:
    """What was to be seen at one time.

    Attributes:
        books: Of the customer whose data plane was killed first.
        listed: Requests that were charged in Redis, and that the ledger is not known to have.
    """

    books: Books
    listed: tuple[str, ...]


@dataclass(slots=True)
class Relay:
    """Three reapers, one after the other, and what each of them left."""

    exit_codes: list[int] = field(default_factory=list)
    charged: Moment = field(default_factory=lambda: Moment(Books(), ()))
    told: Moment = field(default_factory=lambda: Moment(Books(), ()))
    forgotten: Moment = field(default_factory=lambda: Moment(Books(), ()))
    own: Books = field(default_factory=Books)
    restarted: tuple[Books, Books] = (Books(), Books())
    verified: CounterVerification = field(default_factory=CounterVerification)
    corrections: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Relay:
    """All of it, once."""
    return asyncio.run(live_through(tmp_path_factory.mktemp("reapers")))


async def live_through(folder: Path) -> Relay:
    """Kill a data plane, the one that reaps what it left, and the one that goes on with that."""
    relay = Relay()
    async with stack_in(folder) as stack:
        theirs, own = [await stack.new_customer(BUDGET_NANOUSD) for _ in range(2)]
        first = await stack.start("first", Point.AFTER_REAPING)
        await stack.until_maintained_by("first")
        victim, second = await asyncio.gather(
            stack.start("victim", Point.MID_STREAM), stack.start("second", Point.BEFORE_FORGETTING)
        )

        # The first one has a request of its own in flight when it dies.
        stream = asyncio.create_task(_call(own, first))
        await stack.until(lambda: _is_in_flight(stack, own))
        await _call(theirs, victim)
        relay.exit_codes = [await _death_of(victim), await _death_of(first)]
        await stream
        relay.charged = await _seen(stack, theirs)
        relay.exit_codes.append(await _death_of(second))
        relay.told = await _seen(stack, theirs)

        third = await stack.start("third")
        await stack.until(lambda: _is_over(stack))
        relay.forgotten = await _seen(stack, theirs)
        relay.own = await read_books(stack, own)

        await asyncio.gather(*(stack.restart(name) for name in ("victim", "first", "second")))
        relay.verified = await stack.verify()
        relay.corrections = [line for each in (first, second, third) for line in each.corrections]
        relay.restarted = await read_books(stack, theirs), await read_books(stack, own)
    return relay


async def _death_of(node: Node) -> int:
    code = await node.exit_code()
    assert code is not None, node.log[-4_000:]
    return code


async def _call(customer: Customer, node: Node) -> None:
    async with client_of(customer.api_key) as client:
        await client.chat(node.base_url, model=LONG, stream=True, max_tokens=100_000)


async def _seen(stack: Stack, customer: Customer) -> Moment:
    listed = await stack.redis.zrange(stack.keyspace.reaped, 0, -1)
    return Moment(await read_books(stack, customer), tuple(map(str, listed)))


async def _is_in_flight(stack: Stack, customer: Customer) -> bool:
    return (await read_books(stack, customer)).in_flight == 1


async def _is_over(stack: Stack) -> bool:
    lists = (stack.keyspace.leases, stack.keyspace.reaped)
    return not any([await stack.redis.zcard(each) for each in lists])


def test_all_three_are_killed(relay: Relay) -> None:
    assert relay.exit_codes == [-signal.SIGKILL] * 3


def test_what_a_reaper_charged_before_it_died_is_charged_and_listed_until_it_has_a_row(
    relay: Relay,
) -> None:
    assert relay.charged.books.rows == ()
    assert relay.charged.books.settled_nanousd > 0
    assert relay.charged.books.held_nanousd == 0
    assert relay.charged.books.in_flight == 0
    assert len(relay.charged.listed) == 1


def test_its_successor_tells_the_ledger_what_redis_was_charged(relay: Relay) -> None:
    [row] = relay.told.books.rows

    assert row.request_id in relay.charged.listed
    assert row.request_id in relay.told.listed
    assert (row.node_id, row.state) == ("victim", "abandoned")
    assert row.charged_nanousd == row.reserved_nanousd == relay.charged.books.settled_nanousd
    assert relay.told.books.agree


def test_a_third_one_tells_it_again_and_nothing_is_there_twice(relay: Relay) -> None:
    assert relay.forgotten.books == relay.told.books
    assert relay.forgotten.listed == ()


def test_what_a_reaper_had_in_flight_itself_is_reaped_by_the_next(relay: Relay) -> None:
    [row] = relay.own.rows

    assert (row.node_id, row.state) == ("first", "abandoned")
    assert relay.own.agree


def test_with_all_of_them_back_nothing_has_changed_and_no_counter_differs(relay: Relay) -> None:
    assert relay.restarted == (relay.forgotten.books, relay.own)
    assert relay.verified.differing == 0
    assert relay.verified.compared >= 6
    assert relay.corrections == []
