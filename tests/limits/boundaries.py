"""Directed cases at the boundaries of time and state; each is a sentence that must hold.

They run against the script that production runs, and against mutants of it: for each
mutant at least the named case must fail.
"""

from typing import Final

from tests.limits import (
    boundaries_budgets,
    boundaries_calendars,
    boundaries_cancels,
    boundaries_epochs,
    boundaries_marks,
    boundaries_rates,
    boundaries_requests,
    boundaries_upkeep,
    boundaries_windows,
)
from tests.limits.driver import Case

CASES: Final[tuple[Case, ...]] = (
    *boundaries_windows.CASES,
    *boundaries_calendars.CASES,
    *boundaries_requests.CASES,
    *boundaries_budgets.CASES,
    *boundaries_rates.CASES,
    *boundaries_cancels.CASES,
    *boundaries_upkeep.CASES,
    *boundaries_epochs.CASES,
    *boundaries_marks.CASES,
)
