"""How often a stream asks a soft budget for more, and how much of the budget it uses."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.admissions import Admission, Intake
from dataplane.bills import BillBook
from dataplane.domain.estimation import LEAST_OUTPUT_TOKENS, demand_of
from dataplane.domain.limiting import LimitsUnavailable, Standing
from dataplane.domain.prices import PriceBook
from dataplane.domain.routing import route
from dataplane.http.errors import status_of
from dataplane.top_up import TopUp
from dataplane.upstream.translators.openai_openai import OpenAIStreamReader
from tests.pipeline.conftest import Records
from tests.unit.dataplane.configuration import call, price, principal, rule, snapshot

# A token of output costs 1 nano-USD, and input nothing: what is held is a number of tokens.
PRICES = PriceBook([price(input=0, output=10**6)])
BOOK = BillBook(Records(), "node-1", lambda: 0, status_of)


class CountingReservation:
    """A hold in a budget that has room for so many tokens; `asked` is how often it was asked."""

    admitted_at_ms = 0
    service_admitted_at_ms = 0
    standings: tuple[Standing, ...] = ()

    def __init__(self, room_tokens: int) -> None:
        self.room_tokens = room_tokens
        self.asked: list[int] = []
        self.is_away = False

    def settle(self, tokens: int, cost_nanousd: int) -> None:
        raise AssertionError("a top-up settles nothing")

    def release(self) -> None:
        raise AssertionError("a top-up releases nothing")

    async def extend(self, expected_nanousd: int) -> bool:
        self.asked.append(expected_nanousd)
        if self.is_away:
            raise LimitsUnavailable("away")
        return expected_nanousd <= self.room_tokens


def admission(reservation: CountingReservation, expected_tokens: int, **changes: Any) -> Admission:
    """Return a call that was let in with so much reserved."""
    of = snapshot(rule(), prices=PRICES)
    asked, caller = call(**changes), principal()
    plan = of.plan_for(caller, "", "chat", "m", 0)
    attempt = route(of, caller, asked, draw=0, now_ms=0)
    demand = demand_of(asked, attempt.price, asked.output_cap_tokens, expected_tokens)
    intake = Intake(of, caller, asked, plan, attempt, demand, None, expected_tokens, 0)
    return Admission.of(intake, reservation, BOOK.draft_for(intake))


async def streamed(
    it: Admission,
    event_tokens: Sequence[int],
    most_tokens: int = 10**9,
    on_event: Callable[[int], None] = lambda passed: None,
) -> int:
    """Pass on events of these sizes, over and over; return how many tokens were, when it was cut."""
    reader = OpenAIStreamReader(0, 1, hides_usage=True)
    top_up, passed = TopUp(it, reader), 0
    for tokens in cycle(event_tokens):
        passed += tokens
        reader.feed(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 4 * tokens))
        on_event(passed)
        if passed >= most_tokens or not await top_up.has_room():
            return passed
    raise AssertionError("there were no events")


@settings(max_examples=60, deadline=None, database=None)
@given(
    expected=st.integers(16, 5_000),
    room=st.integers(0, 20_000),
    events=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
async def test_a_stream_asks_few_times_and_uses_the_budget_but_for_a_little(
    expected: int, room: int, events: list[int]
) -> None:
    reservation = CountingReservation(expected + room)

    passed = await streamed(admission(reservation, expected), events)

    assert len(reservation.asked) <= 4 * (math.log2((expected + room) / LEAST_OUTPUT_TOKENS) + 1)
    assert expected + room - LEAST_OUTPUT_TOKENS < passed < expected + room + max(events)


async def test_a_stream_whose_doubling_was_refused_asks_again_only_near_its_end() -> None:
    reservation = CountingReservation(1_000)

    await streamed(admission(reservation, 512), [1], most_tokens=495)
    assert reservation.asked == [1_024]
    await streamed(admission(reservation, 512), [1], most_tokens=497)

    assert reservation.asked[1:] == [1_024, 768]


async def test_a_budget_that_others_give_back_to_is_asked_for_ever_more_again() -> None:
    reservation = CountingReservation(600)

    def give_back(passed: int) -> None:
        if passed == 590:
            reservation.room_tokens = 10**6

    await streamed(admission(reservation, 512), [1], 30_000, give_back)

    assert max(reservation.asked) > 30_000
    assert len(reservation.asked) < 40


async def test_a_budget_that_frees_a_little_at_a_time_is_not_asked_with_every_event() -> None:
    reservation = CountingReservation(512)

    def give_back(passed: int) -> None:
        reservation.room_tokens = max(512, passed + LEAST_OUTPUT_TOKENS)

    await streamed(admission(reservation, 512), [1], 10_512, give_back)

    assert len(reservation.asked) < 10_000 / 4


async def test_while_counters_are_away_a_stream_goes_on() -> None:
    reservation = CountingReservation(512)
    reservation.is_away = True

    assert await streamed(admission(reservation, 512), [1], 20_000) == 20_000
    assert len(reservation.asked) < 10


@pytest.mark.parametrize("room", [2_000, 10**6])
async def test_a_cap_is_reserved_once_and_never_more(room: int) -> None:
    reservation = CountingReservation(room)
    it = admission(reservation, 512, output_cap_tokens=1_500)

    assert await streamed(it, [1], 10_000) == 10_000
    assert reservation.asked == [1_024, 1_500]


async def test_an_answer_that_the_provider_has_ended_is_not_asked_for_nor_cut() -> None:
    reservation = CountingReservation(0)
    reader = OpenAIStreamReader(0, 1, hides_usage=True)
    top_up = TopUp(admission(reservation, 16), reader)

    reader.feed(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 4_000))
    reader.feed(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')

    assert await top_up.has_room()
    assert reservation.asked == []
