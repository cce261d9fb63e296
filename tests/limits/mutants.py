"""Every fault that the directed cases must notice."""

from tests.limits import mutants_budgets, mutants_marks, mutants_requests, mutants_upkeep

MUTANTS = (
    *mutants_requests.MUTANTS,
    *mutants_budgets.MUTANTS,
    *mutants_upkeep.MUTANTS,
    *mutants_marks.MUTANTS,
)
