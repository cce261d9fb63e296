"""The table of what is done about a counter that differs from the ledger."""

import pytest

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.maintenance.counter_table import Reading
from dataplane.maintenance.drift import (
    Suspicion,
    Verdict,
    is_short,
    suspicion_of,
    verdict_of,
)


def counter(unit: Unit = Unit.SPEND) -> CounterName:
    return CounterName(SubjectKind.USER, "u", unit, Window.MONTH, "202611")


def judged(*rounds: tuple[int, int, int], unit: Unit = Unit.SPEND) -> Verdict:
    """Return the verdict after rounds of (settled, held, ledger)."""
    suspicion: Suspicion | None = None
    for number, (settled, held, ledger) in enumerate(rounds):
        reading = Reading(settled, held, exists=True)
        suspicion = suspicion_of(reading, ledger, suspicion, number, number * 10)
    return Verdict.LEAVE if suspicion is None else verdict_of(counter(unit), suspicion)


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([(5, 0, 5)], Verdict.LEAVE),
        # Behind, and nothing under way makes up for it.
        ([(4, 0, 5)], Verdict.RAISE),
        ([(3, 1, 5)], Verdict.RAISE),
        # Behind, but what it holds may be the settlement that is missing.
        ([(4, 1, 5)], Verdict.LEAVE),
        ([(4, 1, 5), (5, 0, 5)], Verdict.LEAVE),
        ([(4, 9, 5), (4, 9, 5)], Verdict.RAISE),
        ([(4, 9, 5), (4, 9, 6)], Verdict.RAISE),
        # Behind, but catching up.
        ([(4, 9, 6), (5, 9, 6)], Verdict.LEAVE),
        ([(4, 9, 5), (5, 9, 5), (4, 9, 5)], Verdict.LEAVE),
        # Ahead: records under way are the normal case.
        ([(6, 0, 5)], Verdict.LEAVE),
        ([(6, 0, 5), (6, 0, 5)], Verdict.LEAVE),
        ([(6, 0, 5), (6, 0, 5), (6, 0, 5)], Verdict.LOWER),
        ([(6, 1, 5), (6, 1, 5), (6, 1, 5)], Verdict.LEAVE),
        ([(6, 0, 5), (7, 0, 5), (7, 0, 5)], Verdict.LEAVE),
        ([(7, 0, 5), (7, 0, 6), (7, 0, 6)], Verdict.LEAVE),
        ([(6, 0, 5), (4, 0, 5)], Verdict.RAISE),
        ([(4, 9, 5), (6, 0, 5), (6, 0, 5)], Verdict.LEAVE),
    ],
)
def test_a_budget_that_differs_is_judged_by_its_history(
    rounds: list[tuple[int, int, int]], verdict: Verdict
) -> None:
    assert judged(*rounds) is verdict


def test_tokens_behind_the_ledger_are_given_a_round_to_settle() -> None:
    assert judged((4, 0, 5), unit=Unit.TOKENS) is Verdict.LEAVE
    assert judged((4, 0, 5), (4, 0, 5), unit=Unit.TOKENS) is Verdict.RAISE


def test_tokens_that_nobody_counts_yet_are_behind_at_once() -> None:
    assert is_short(counter(Unit.TOKENS), Reading(), 1)
    assert not is_short(counter(Unit.TOKENS), Reading(exists=True), 1)


def test_a_counter_that_is_found_twice_in_a_round_is_judged_once() -> None:
    reading = Reading(6, 0, exists=True)
    first = suspicion_of(reading, 5, None, 7, 100)

    assert suspicion_of(reading, 5, first, 7, 100) is first


def test_a_counter_that_was_not_looked_at_for_a_round_is_judged_anew() -> None:
    reading = Reading(6, 0, exists=True)
    first = suspicion_of(reading, 5, None, 7, 100)

    later = suspicion_of(reading, 5, first, 9, 300)

    assert later is not None
    assert (later.rounds, later.since_ms) == (1, 300)
