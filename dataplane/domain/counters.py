"""Counters by name, as Redis and the ledger both know them, and what is said about them.

Only counters of calendar periods have a sum in the ledger: requests, tokens and money over a day, a
month or for ever. Amounts are in the counter's unit; money is in nano-USD.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from dataplane.domain.limiting import SubjectKind, Unit, Window

# More differences than anybody reads; an answer must fit into one message.
MAX_DIFFERENCES: Final = 1_000


class LedgerUnavailable(Exception):  # noqa: N818 - a state of the service, not a fault of the call
    """No control plane answered in time; the text says how, for a log."""


@dataclass(frozen=True, slots=True)
class CounterName:
    """One counter of one subject in one period.

    `subject_id` is empty for the service-wide subject, `period_id` is `20261121`, `202611` or
    `total`.
    """

    subject_kind: SubjectKind
    subject_id: str
    unit: Unit
    window: Window
    period_id: str
    reset_generation: int = 0


@dataclass(frozen=True, slots=True)
class CounterKind:
    """What a kind of subject is counted by."""

    subject_kind: SubjectKind
    unit: Unit
    window: Window


@dataclass(frozen=True, slots=True)
class SubjectName:
    """Whom counters count."""

    subject_kind: SubjectKind
    subject_id: str


@dataclass(frozen=True, slots=True)
class CounterSum:
    """What the ledger says of a counter."""

    counter: CounterName
    amount: int


class Reading(NamedTuple):
    """What a counter says in Redis; one that does not exist says nothing but zeros.

    `held` is 0 but for money, `told_percent` the highest crossing that was told.
    """

    settled: int = 0
    held: int = 0
    told_percent: int = 0


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """A budget was used to 80 or 100 percent; `reached_at_ms` is Unix time by the clock of Redis."""

    counter: CounterName
    percent: int
    capacity_nanousd: int
    settled_nanousd: int
    held_nanousd: int
    reached_at_ms: int


@dataclass(frozen=True, slots=True)
class CounterDifference:
    """A counter that is not what the ledger says, or holds what nobody reserved.

    Attributes:
        counter: Which.
        settled: What it has settled.
        ledger: What the ledger's sum is.
        held: What it holds for requests in flight; 0 but for money.
        reserved: What the reservations in flight hold of it.
        is_repaired: It was set to what it should be.
    """

    counter: CounterName
    settled: int
    ledger: int
    held: int = 0
    reserved: int = 0
    is_repaired: bool = False


class CounterTaskKind(StrEnum):
    """What the node that maintains the counters is asked for."""

    VERIFY = "verify"
    REPAIR = "repair"
    RESET_CLOCK = "reset_clock"


@dataclass(frozen=True, slots=True)
class CounterTask:
    """Work on the counters; the report names the same `task_id`."""

    task_id: str
    kind: CounterTaskKind


@dataclass(frozen=True, slots=True)
class CounterReport:
    """The outcome of a task.

    Attributes:
        task_id: Which task.
        problem: Why it could not be done, in words for an administrator; empty when it was.
        compared: How many counters were compared.
        differing: How many of them differ.
        differences: Of these at most `MAX_DIFFERENCES`.
    """

    task_id: str
    problem: str = ""
    compared: int = 0
    differing: int = 0
    differences: tuple[CounterDifference, ...] = ()
