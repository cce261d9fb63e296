"""Revocations that stand in Redis, for nodes whose stream is cut and that have not heard of them.

Every node that applies a revocation marks its subject; an admit asks for the marks of who calls, and is
refused where one overrules the configuration by which its node let the caller in. So a node that is cut
off from its control plane obeys from its next admitted request on, as long as it has Redis.

Marks are kept for seven days and never lowered, so that writing one again changes nothing. What Redis
has lost, those who remember it write again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol  # Any: the fields of an operation differ

from dataplane.domain.principals import Principal
from dataplane.domain.revocations import DEVICE, ORGANIZATION, USER, Revocation
from dataplane.limits.counters import MARK_MS, Keyspace
from dataplane.limits.operations import Answer, Layout, Operation, Verb

# A million keys of which one in a hundred is revoked in a week; 3 MB, and no more in each bucket.
MOST_REMEMBERED: Final = 10_000
# A call with as many keeps the server for less than 0.2 ms.
_MARKS_A_CALL: Final = 50
# As `Keyspace.marks` has them: a mark that the script names by its place is of this kind, or of the
# credential that calls.
CREDENTIAL_PLACE: Final = 1
_KINDS: Final = {2: USER, 3: ORGANIZATION}
# An operation has for each mark: key, epoch, revision, whether streams end.
MARK_FIELDS: Final = 4


class Overruled(Exception):  # noqa: N818 - a verdict, not a fault
    """A revocation that this node has not heard of refuses a request; no counter has moved."""

    def __init__(self, revocation: Revocation) -> None:
        super().__init__(f"a {revocation.kind} was revoked")
        self.revocation = revocation


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark what was revoked. Answers `[OK]`; marks that are higher stay as they are."""

    revocations: tuple[Revocation, ...]
    request_id: str = ""

    def pack(self, layout: Layout, keyspace: Keyspace) -> tuple[Any, ...]:
        """Declare the marks."""
        fields: list[str | int] = []
        for each in self.revocations:
            key = layout.key(keyspace.mark(each.kind, each.subject_id))
            fields += (key, each.config_epoch, each.revision, int(each.terminates))
        return (int(Verb.MARK), fields)


class Writer(Protocol):
    """Queues an operation for Redis until it is answered; says whether that was so, or it was given up."""

    def __call__(self, operation: Operation, on_end: Callable[[bool], None]) -> None:
        """Queue it; plain, `on_end` may be called at once."""


class Marks:
    """What a node knows to be revoked, and sees to it that Redis has it.

    The newest 10,000 subjects of the last seven days. One operation at a time is on its way; while
    Redis is away it waits in the queue, and the others here.
    """

    def __init__(self, write: Writer, clock: Callable[[], float]) -> None:
        """Begin with none; `clock` returns seconds."""
        self._write = write
        self._clock = clock
        # By subject, those that came last at the end.
        self._known: dict[tuple[str, str], tuple[Revocation, float]] = {}
        self._unwritten: dict[tuple[str, str], Revocation] = {}
        self._is_writing = False
        self._times_lost = 0

    def __len__(self) -> int:
        """Return how many marks Redis is not known to have."""
        return len(self._unwritten)

    def note(self, revocation: Revocation) -> None:
        """Have `revocation` written; nothing happens when it, or a later one of its subject, was noted."""
        if not could_call(revocation):
            return
        subject = revocation.subject
        earlier = self._known.pop(subject, None)
        if earlier is not None and _rank(earlier[0]) >= _rank(revocation):
            self._known[subject] = earlier
            return
        self._known[subject] = revocation, self._clock()
        self._unwritten[subject] = revocation
        if len(self._known) > MOST_REMEMBERED:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._unwritten.pop(oldest, None)
        self._write_next()

    def renew(self) -> None:
        """Have everything that is known written again: Redis may have lost it."""
        self._times_lost += 1
        earliest = self._clock() - MARK_MS / 1000
        self._known = {
            subject: (revocation, at)
            for subject, (revocation, at) in self._known.items()
            if at > earliest
        }
        self._unwritten = {subject: each[0] for subject, each in self._known.items()}
        self._write_next()

    def _write_next(self) -> None:
        if self._is_writing or not self._unwritten:
            return
        batch = tuple(islice(self._unwritten.values(), _MARKS_A_CALL))
        times_lost = self._times_lost

        def ended(is_answered: bool) -> None:
            self._is_writing = False
            if not is_answered:
                # The queue is full, or closed: the next one that is noted takes it along.
                return
            if times_lost == self._times_lost:
                self._forget_written(batch)
            self._write_next()

        self._is_writing = True
        self._write(Mark(batch), ended)

    def _forget_written(self, batch: Iterable[Revocation]) -> None:
        for each in batch:
            # Meanwhile a later one of the same subject may have come.
            if self._unwritten.get(each.subject) is each:
                del self._unwritten[each.subject]


def could_call(revocation: Revocation) -> bool:
    """Return whether the subject could ever call: a device without an organization could not."""
    return revocation.kind != DEVICE or bool(revocation.organization_id)


def overruling(principal: Principal, answer: Answer) -> Overruled:
    """Return the verdict of an answer `[REVOKED, place, epoch, revision, ends streams]` to a caller."""
    _, place, epoch, revision, ends_streams = answer
    organization_id = principal.user.organization.organization_id
    kind = _KINDS.get(place, principal.kind.value)
    ids = {USER: principal.user.user_id, ORGANIZATION: organization_id}
    subject_id = ids.get(kind, principal.principal_id)
    return Overruled(
        Revocation(kind, subject_id, organization_id, epoch, revision, bool(ends_streams))
    )


def _rank(revocation: Revocation) -> tuple[str, int]:
    return revocation.config_epoch, revocation.revision
