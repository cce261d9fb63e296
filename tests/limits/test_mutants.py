"""Faults put into the script on purpose; the directed cases must catch each of them."""

import pytest

from dataplane.limits.script import Script, compiled
from tests.limits.boundaries import CASES
from tests.limits.driver import Case, Driver
from tests.limits.mutant import Mutant
from tests.limits.mutants import MUTANTS
from tests.limits.script_runner import ScriptFaultError, source_under_test

CATCHERS = tuple(case for case in CASES if case in {each.caught_by for each in MUTANTS})


def mutated(mutant: Mutant) -> Script:
    text = source_under_test()
    assert text.count(mutant.original) == 1, f"{mutant.name}: the script no longer says so"
    return compiled(text.replace(mutant.original, mutant.fault))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_in_the_script_does_not_go_unnoticed(mutant: Mutant, redis_url: str) -> None:
    assert mutant.caught_by in CATCHERS

    noticed = ScriptFaultError if mutant.is_fault else AssertionError
    with Driver(redis_url, mutated(mutant)) as driver, pytest.raises(noticed):
        mutant.caught_by(driver)


@pytest.mark.parametrize("case", CATCHERS, ids=lambda case: case.__name__)
def test_what_catches_faults_finds_none_in_the_script(case: Case, redis_under_test: str) -> None:
    """Without a fault, and compiled as a mutant is: what is caught is the fault."""
    with Driver(redis_under_test, compiled(source_under_test())) as driver:
        case(driver)
