"""A fault put into the script on purpose: what it says, what the mutant says, and who must notice."""

from dataclasses import dataclass

from tests.limits.driver import Case


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault. `original` stands once in the script; `is_fault`: the script itself stumbles over it."""

    name: str
    original: str
    fault: str
    caught_by: Case
    is_fault: bool = False
