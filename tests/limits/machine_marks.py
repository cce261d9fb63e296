"""The same with callers who are revoked, and a node that learns of it sooner or later, or never."""

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from dataplane.domain.limiting import LayerPlan, SubjectKind
from tests.limits.callers import (
    EARLIER,
    LATER,
    PRESENT,
    Caller,
    at,
    caller_of,
    revoked,
    subjects_of,
)
from tests.limits.machine import LimiterMachine

EPOCHS = st.sampled_from([EARLIER, PRESENT, PRESENT, PRESENT, LATER])
REVISIONS = st.integers(1, 6)
CALLERS = (
    caller_of("k_1", "u_1", "o_1"),
    caller_of("d_2", "u_2", "o_1", SubjectKind.DEVICE),
)
SUBJECTS = st.sampled_from(sorted({each for caller in CALLERS for each in subjects_of(caller)}))


class MarkingMachine(LimiterMachine):
    """Marks, callers and configurations."""

    def __init__(self, redis_url: str, plans: tuple[LayerPlan, LayerPlan]) -> None:
        super().__init__(redis_url, plans)
        self.position = at(3)

    def caller(self, plan: LayerPlan) -> Caller | None:
        return self.position, CALLERS[self.plans.index(plan)]

    @rule(subject=SUBJECTS, revision=REVISIONS, epoch=EPOCHS, terminates=st.booleans())
    def mark(self, subject: tuple[str, str], revision: int, epoch: str, terminates: bool) -> None:
        revocation = revoked(subject, revision, epoch, terminates=terminates)
        self.driver.mark(revocation)
        self.model.mark(revocation)

    @rule(revision=REVISIONS, epoch=EPOCHS)
    def take_over(self, revision: int, epoch: str) -> None:
        """The node gets another configuration."""
        self.position = at(revision, epoch)

    @rule()
    def forget_marks(self) -> None:
        """They are over."""
        for kind, subject_id in self.model.marks:
            self.driver.redis.delete(self.driver.keyspace.mark(kind, subject_id))
        self.model.marks.clear()

    @invariant()
    def both_mark_the_same(self) -> None:
        assert self.driver.marks() == self.model.marks
