"""The table of what is done about a counter that differs from the ledger."""

import pytest

from dataplane.domain.counters import CounterName, Reading
from dataplane.domain.limiting import SubjectKind, Unit, Window
from dataplane.maintenance.drift import COVERED_MS, Suspicion, Verdict, suspicion_of, verdict_of

# Rounds come so far apart.
ROUND_MS = COVERED_MS // 3


def counter(unit: Unit = Unit.SPEND) -> CounterName:
    return CounterName(SubjectKind.USER, "u", unit, Window.MONTH, "202611")


def suspected(*rounds: tuple[int, int, int]) -> Suspicion | None:
    """Return what is remembered after rounds of (settled, held, ledger)."""
    suspicion: Suspicion | None = None
    for number, (settled, held, ledger) in enumerate(rounds):
        reading = Reading(settled, held)
        suspicion = suspicion_of(reading, ledger, suspicion, number, number * ROUND_MS)
    return suspicion


def judged(*rounds: tuple[int, int, int], unit: Unit = Unit.SPEND) -> Verdict:
    """Return the verdict after rounds of (settled, held, ledger)."""
    suspicion = suspected(*rounds)
    if suspicion is None:
        return Verdict.LEAVE
    return verdict_of(counter(unit), suspicion, (len(rounds) - 1) * ROUND_MS)


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
        ([(4, 9, 5)] * 3, Verdict.LEAVE),
        # For longer than any settlement is under way.
        ([(4, 9, 5)] * 4, Verdict.RAISE),
        ([(4, 9, 7), (5, 9, 7), (5, 9, 6), (4, 9, 5)], Verdict.RAISE),
        # It caught up meanwhile.
        ([(4, 9, 5), (4, 9, 5), (5, 9, 5), (4, 9, 5)], Verdict.LEAVE),
        ([(4, 9, 5), (6, 9, 5), (4, 9, 5), (4, 9, 5)], Verdict.LEAVE),
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


@pytest.mark.parametrize(
    ("rounds", "goal"),
    [
        # What it holds does not make up for it: all that the ledger has is missing.
        ([(4, 1, 9)], 9),
        # What was missing all the while; the rest may be under way.
        ([(4, 9, 7), (9, 9, 11), (20, 9, 29)], 22),
        ([(4, 9, 7), (4, 9, 8)], 7),
    ],
)
def test_a_budget_is_raised_by_no_more_than_what_is_missing(
    rounds: list[tuple[int, int, int]], goal: int
) -> None:
    suspicion = suspected(*rounds)

    assert suspicion is not None
    assert suspicion.goal == goal


def test_tokens_behind_the_ledger_are_given_a_round_to_settle() -> None:
    assert judged((4, 0, 5), unit=Unit.TOKENS) is Verdict.LEAVE
    assert judged((4, 0, 5), (4, 0, 5), unit=Unit.TOKENS) is Verdict.RAISE
    assert judged((4, 0, 6), (5, 0, 6), unit=Unit.TOKENS) is Verdict.LEAVE
    assert judged((4, 0, 9), (5, 0, 9), (6, 0, 9), unit=Unit.TOKENS) is Verdict.LEAVE
    assert judged((4, 0, 9), (5, 0, 9), (6, 0, 9), (7, 0, 9), unit=Unit.TOKENS) is Verdict.RAISE


def test_a_counter_that_is_found_twice_in_a_round_is_judged_once() -> None:
    reading = Reading(6, 0)
    first = suspicion_of(reading, 5, None, 7, 100)

    assert suspicion_of(reading, 5, first, 7, 100) is first


def test_a_counter_that_was_not_looked_at_for_a_round_is_judged_anew() -> None:
    reading = Reading(6, 0)
    first = suspicion_of(reading, 5, None, 7, 100)

    later = suspicion_of(reading, 5, first, 9, 300)

    assert later is not None
    assert (later.rounds, later.since_ms) == (1, 300)
