"""What a reservation says that it holds, and how it raises that."""

from typing import Final

import pytest

from dataplane.domain.limiting import MAX_AMOUNT, Layer, LimitsUnavailable, Unit, Window, plan_of
from dataplane.limits import counters
from dataplane.limits.counters import Binder, Keyspace
from dataplane.limits.operations import Admit, Answer, Extend, Operation, Outcome
from dataplane.limits.reservation import Reservation
from tests.limits.plans import budget, layer, rate, shadowed
from tests.limits.script_runner import NOON_MS

MIDNIGHT_MS: Final = NOON_MS + 12 * 3_600_000
KEYSPACE: Final = Keyspace("g")


class Script:
    """Answers as it is told, and remembers what was asked."""

    def __init__(self, *answers: Outcome) -> None:
        self.answers = list(answers)
        self.asked: list[Operation] = []

    async def ask(self, operation: Operation) -> Answer:
        self.asked.append(operation)
        return [self.answers.pop(0)]


def reservation(script: Script, *layers: Layer, nexts: int = 0) -> Reservation:
    plan = plan_of(layers)
    bound = Binder(KEYSPACE).bind(plan, NOON_MS)
    admit = Admit("a", plan, bound, 600, 50, b"meta", expected_nanousd=20)
    answer = [Outcome.OK, NOON_MS, nexts, [0, 0] * len(layers)]
    return Reservation(admit, answer, 0.0, lambda *_: None, script.ask)


def test_what_is_held_of_counters_that_can_be_rebuilt_is_told_in_the_form_of_the_record() -> None:
    made = reservation(
        Script(),
        rate(5, 60_000),
        layer(Unit.REQUESTS, Window.MINUTE, 9),
        layer(Unit.TOKENS, Window.MINUTE, 9),
        layer(Unit.REQUESTS, Window.DAY, 9),
        layer(Unit.TOKENS, Window.DAY, 9),
        budget(90),
        shadowed(budget(70, Window.MONTH, is_hard=False)),
        layer(Unit.PARALLEL, Window.NONE, 9),
        nexts=0b1000,
    )

    held = made.held()

    keys = made.bound.keys
    month_ends_ms = MIDNIGHT_MS + 9 * 86_400_000
    assert (held.request_id, held.meta, held.admitted_at_ms) == ("a", b"meta", NOON_MS)
    assert held.counters == [
        *(counters.PERIOD_REQUESTS, keys[4], 1, 0, MIDNIGHT_MS + 86_400_000),
        *(counters.PERIOD_TOKENS, keys[5], 600, 0, MIDNIGHT_MS),
        *(counters.SPEND, keys[7], 50, 90, MIDNIGHT_MS),
        *(counters.SOFT_SPEND, keys[9], 20, -70, month_ends_ms),
        *(counters.PARALLEL, keys[11], 1, 0, 0),
    ]


async def test_a_hold_that_was_raised_is_told_from_then_on() -> None:
    script = Script(Outcome.OK)
    made = reservation(script, budget(90, is_hard=False))

    assert await made.extend(35)

    assert script.asked == [Extend("a", made.bound, 35)]
    assert made.held().counters[2] == 35


async def test_a_hold_that_could_not_be_raised_stays_what_it_was() -> None:
    made = reservation(Script(Outcome.DENY), budget(90, is_hard=False))

    assert not await made.extend(35)

    assert made.held().counters[2] == 20


async def test_nobody_is_asked_for_what_is_held_already_or_by_no_soft_budget() -> None:
    script = Script()

    assert await reservation(script, budget(90, is_hard=False)).extend(20)
    assert await reservation(script, budget(90)).extend(35)

    assert script.asked == []


async def test_a_request_whose_hold_was_lost_goes_on() -> None:
    assert await reservation(Script(Outcome.GONE), budget(90, is_hard=False)).extend(35)


async def test_a_request_that_is_over_raises_nothing() -> None:
    script = Script()
    made = reservation(script, budget(90, is_hard=False))
    made.settle(1, 1)

    assert await made.extend(35)

    assert script.asked == []


async def test_a_fault_is_not_taken_for_a_budget_without_room() -> None:
    with pytest.raises(LimitsUnavailable):
        await reservation(Script(Outcome.FAULT), budget(90, is_hard=False)).extend(35)


@pytest.mark.parametrize("amount", [-1, MAX_AMOUNT + 1])
async def test_a_hold_is_an_amount_that_the_script_can_count(amount: int) -> None:
    with pytest.raises(ValueError, match="between 0"):
        await reservation(Script(), budget(90, is_hard=False)).extend(amount)
