"""When a counter differs from the ledger, and when that may be set right. Pure.

Redis knows of a request when it is admitted, the ledger a moment after it is over. So a counter that is
ahead of the ledger is the normal case, and one that is behind may have a settlement under way: what
it holds is at least what that will add.

| counter                                  | verdict                                              |
|------------------------------------------|------------------------------------------------------|
| settled + held < ledger                  | raise: what it holds does not make up for it         |
| settled < ledger, twice, not catching up | raise                                                |
| settled > ledger, still for three rounds | lower, where nothing is held and all have reported   |
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from dataplane.domain.counters import CounterName
from dataplane.domain.limiting import Unit
from dataplane.maintenance.counter_table import Reading

_SHORT_ROUNDS: Final = 2
_STILL_ROUNDS: Final = 3


class Verdict(Enum):
    """What is to be done about a counter; `LOWER` only if all nodes have reported."""

    LEAVE = auto()
    RAISE = auto()
    LOWER = auto()


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A counter that differed in `rounds` rounds running, since `since_ms` by the clock of Redis.

    `round_number` is that of the last of them.
    """

    reading: Reading
    ledger: int
    rounds: int
    since_ms: int
    round_number: int


def is_short(counter: CounterName, reading: Reading, ledger: int) -> bool:
    """Return whether a counter is behind the ledger, whatever settlements are under way."""
    if reading.settled + reading.held >= ledger:
        return False
    # Tokens may turn out to be more than were reserved: until it is settled, nothing holds those.
    return counter.unit is not Unit.TOKENS or not reading.exists


def suspicion_of(
    reading: Reading, ledger: int, earlier: Suspicion | None, round_number: int, now_ms: int
) -> Suspicion | None:
    """Return what is to be remembered of a counter until the next round; None when it agrees."""
    if reading.settled == ledger:
        return None
    if earlier is not None and earlier.round_number == round_number:
        return earlier  # found twice in one round
    if (
        earlier is None
        or earlier.round_number != round_number - 1
        or not _goes_on(reading, ledger, earlier)
    ):
        return Suspicion(reading, ledger, 1, now_ms, round_number)
    return Suspicion(reading, ledger, earlier.rounds + 1, earlier.since_ms, round_number)


def verdict_of(counter: CounterName, suspicion: Suspicion) -> Verdict:
    """Return what is to be done about a counter that differs."""
    reading, ledger = suspicion.reading, suspicion.ledger
    if reading.settled < ledger:
        is_due = suspicion.rounds >= _SHORT_ROUNDS or is_short(counter, reading, ledger)
        return Verdict.RAISE if is_due else Verdict.LEAVE
    is_quiet = suspicion.rounds >= _STILL_ROUNDS and reading.held == 0
    return Verdict.LOWER if is_quiet else Verdict.LEAVE


def _goes_on(reading: Reading, ledger: int, earlier: Suspicion) -> bool:
    before = earlier.reading
    if reading.settled < ledger:
        return ledger - reading.settled >= earlier.ledger - before.settled > 0
    # Lowering wants a counter that stands still, and a ledger that does.
    return (reading.settled, reading.held, ledger) == (
        before.settled,
        before.held,
        earlier.ledger,
    )
