"""When a counter differs from the ledger, and when that may be set right. Pure.

Redis knows of a request when it is admitted, the ledger a moment after it is over. So a counter that is
ahead of the ledger is the normal case, and a budget that is behind may have a settlement under way: what
it holds is at least what that will add. A node that has lost Redis and not the control plane owes such
settlements until its requests are reaped; only what is missing for longer will never come.

| counter                                     | verdict                                              |
|---------------------------------------------|------------------------------------------------------|
| settled + held < ledger                     | raise: what it holds does not make up for it         |
| settled < ledger <= settled + held, always  | raise by what was missing all the while              |
| for a minute                                |                                                      |
| tokens < ledger, twice, not catching up, or | raise: more than was reserved may be under way       |
| for a minute                                |                                                      |
| settled > ledger, still for three rounds    | lower, where nothing is held and all have reported   |
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from dataplane.domain.counters import CounterName, Reading
from dataplane.domain.limiting import Unit

# Longer than the lease of a request, the rest of a reaper after an outage, and its round.
COVERED_MS: Final = 60_000
_SHORT_ROUNDS: Final = 2
_STILL_ROUNDS: Final = 3


class Verdict(Enum):
    """What is to be done about a counter; `LOWER` only if all nodes have reported."""

    LEAVE = auto()
    RAISE = auto()
    LOWER = auto()


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A counter that differed in every round since `since_ms`, by the clock of Redis.

    In the last `rounds` of them it did not come closer to the ledger; `round_number` is that of the last
    one, `missing` the least by which it was behind in any.
    """

    reading: Reading
    ledger: int
    rounds: int
    since_ms: int
    round_number: int
    missing: int = 0

    @property
    def is_short(self) -> bool:
        """Whether what it holds does not make up for what it lacks."""
        return self.reading.settled + self.reading.held < self.ledger

    @property
    def goal(self) -> int:
        """What a counter that is behind is raised to."""
        # What it lacks by now may be on its way; what it lacked all the while is not.
        return self.ledger if self.is_short else self.reading.settled + self.missing


def suspicion_of(
    reading: Reading, ledger: int, earlier: Suspicion | None, round_number: int, now_ms: int
) -> Suspicion | None:
    """Return what is to be remembered of a counter until the next round; None when it agrees."""
    if reading.settled == ledger:
        return None
    if earlier is not None and earlier.round_number == round_number:
        return earlier  # found twice in one round
    found = Suspicion(reading, ledger, 1, now_ms, round_number, max(0, ledger - reading.settled))
    if earlier is None or earlier.round_number != round_number - 1:
        return found
    return _continued(found, earlier) or found


def verdict_of(
    counter: CounterName, suspicion: Suspicion, now_ms: int, covered_ms: int = COVERED_MS
) -> Verdict:
    """Return what is to be done at `now_ms` about a counter that differs.

    Args:
        counter: Which.
        suspicion: How it differs.
        now_ms: The time of Redis, in the round of the suspicion.
        covered_ms: How long what a counter holds makes up for what it lacks.
    """
    if suspicion.reading.settled < suspicion.ledger:
        if counter.unit is Unit.TOKENS:
            # Tokens may turn out to be more than were reserved: until then, nothing holds those.
            is_due = suspicion.rounds >= _SHORT_ROUNDS
        else:
            is_due = suspicion.is_short
        is_due = is_due or now_ms - suspicion.since_ms >= covered_ms
        return Verdict.RAISE if is_due else Verdict.LEAVE
    is_quiet = suspicion.rounds >= _STILL_ROUNDS and suspicion.reading.held == 0
    return Verdict.LOWER if is_quiet else Verdict.LEAVE


def _continued(found: Suspicion, earlier: Suspicion) -> Suspicion | None:
    """Return `found` with the history of the round before; None when that was something else."""
    before = earlier.reading
    if found.missing and earlier.missing:
        # What is under way comes and goes with the requests.
        is_coming_closer = found.missing < earlier.ledger - before.settled
        rounds = 1 if is_coming_closer else earlier.rounds + 1
        missing = min(found.missing, earlier.missing)
        return replace(found, rounds=rounds, since_ms=earlier.since_ms, missing=missing)
    # Lowering wants a counter that stands still, and a ledger that does.
    is_still = (found.reading[:2], found.ledger) == (before[:2], earlier.ledger)
    if found.missing or not is_still:
        return None
    return replace(found, rounds=earlier.rounds + 1, since_ms=earlier.since_ms)
