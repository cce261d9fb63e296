"""Directed cases of callers who were revoked, as nodes ask for them that have not heard of it."""

from itertools import product
from typing import Final

from dataplane.domain.limiting import LayerPlan, SubjectKind, Unit, Window, plan_of
from dataplane.domain.principals import Principal
from dataplane.domain.revocations import overrules
from dataplane.limits.counters import MARK_MS
from dataplane.limits.operations import Outcome
from tests.limits.callers import EARLIER, LATER, PRESENT, at, caller_of, revoked, subjects_of
from tests.limits.driver import Case, Driver
from tests.limits.plans import budget, layer

KEY: Final = caller_of("k_1")
DEVICE: Final = caller_of("d_1", kind=SubjectKind.DEVICE)
STRANGER: Final = caller_of("k_2", "u_2", "o_2")
OK: Final = [Outcome.OK]


def roomy() -> LayerPlan:
    """Return a plan with room; each caller has one of its own."""
    return plan_of([layer(Unit.REQUESTS, Window.DAY, 1_000), budget(1_000, is_hard=False)])


def contents(driver: Driver) -> dict[bytes, object]:
    """Return what every key holds, but that of the clock of the test."""
    keys = driver.redis.scan_iter(f"{driver.keyspace.prefix}*", count=1000)
    return {key: driver.redis.dump(key) for key in keys if not key.endswith(b":test")}


def a_caller_who_was_revoked_later_than_its_node_knows_is_refused(driver: Driver) -> None:
    for number, (caller, place) in enumerate(product((KEY, DEVICE), range(3))):
        driver.wipe()
        assert driver.open_epoch("first") == OK
        plan, other = roomy(), roomy()
        subject = subjects_of(caller)[place]
        assert driver.mark(revoked(subject, 8)) == OK
        refused = [Outcome.REVOKED, place + 1, PRESENT, 8, 0]
        assert driver.admit(f"a{number}", plan, caller=(at(7), caller)) == refused
        for revision in (8, 9):
            known = driver.admit(f"b{number}{revision}", plan, caller=(at(revision), caller))
            assert known[0] == Outcome.OK
        assert driver.admit(f"c{number}", other, caller=(at(7), STRANGER))[0] == Outcome.OK
        # Nobody says who asks.
        assert driver.admit(f"d{number}", roomy())[0] == Outcome.OK


def the_first_of_several_marks_is_told(driver: Driver) -> None:
    plan = roomy()
    for subject, terminates in zip(reversed(subjects_of(KEY)), (True, False, True), strict=True):
        assert driver.mark(revoked(subject, 8, terminates=terminates)) == OK
        answer = driver.admit("a", plan, caller=(at(7), KEY))
        assert (answer[0], subjects_of(KEY)[answer[1] - 1]) == (Outcome.REVOKED, subject)
        assert answer[2:] == [PRESENT, 8, int(terminates)]


def a_mark_overrules_what_the_rule_says_that_it_overrules(driver: Driver) -> None:
    # By bytes, whatever the language of the server: upper case comes first, and longer texts last.
    epochs = (EARLIER, PRESENT, LATER, "T", "t", "ta", "tB", "té", "t 1 x")
    plans = {each: roomy() for each in (KEY, DEVICE)}
    for number, (mark_epoch, epoch, place) in enumerate(product(epochs, epochs, range(3))):
        caller = (KEY, DEVICE)[number % 2]
        kind, subject_id = subjects_of(caller)[place]
        driver.redis.delete(driver.keyspace.mark(kind, subject_id))
        assert driver.mark(revoked((kind, subject_id), 10, mark_epoch)) == OK
        for revision in (9, 10, 100):
            name = f"r{number}-{revision}"
            answer = driver.admit(name, plans[caller], 0, 0, caller=(at(revision, epoch), caller))
            is_refused = overrules(kind, mark_epoch, 10, epoch, revision)
            assert (answer[0] == Outcome.REVOKED) == is_refused, (kind, mark_epoch, epoch, revision)
            driver.release(name)
        driver.redis.delete(driver.keyspace.mark(kind, subject_id))


def a_mark_is_never_lowered(driver: Driver) -> None:
    subject = "key", "k_1"
    for epoch, revision, terminates, stands in (
        (PRESENT, 9, True, (PRESENT, 9, True)),
        (PRESENT, 8, False, (PRESENT, 9, True)),
        (PRESENT, 9, False, (PRESENT, 9, True)),
        (EARLIER, 50, False, (PRESENT, 9, True)),
        (PRESENT, 10, False, (PRESENT, 10, False)),
        (LATER, 1, True, (LATER, 1, True)),
        (PRESENT, 11, False, (LATER, 1, True)),
    ):
        assert driver.mark(revoked(subject, revision, epoch, terminates=terminates)) == OK
        assert driver.marks() == {subject: stands}


def a_mark_is_kept_for_seven_days_from_when_it_was_raised(driver: Driver) -> None:
    key = driver.keyspace.mark("key", "k_1")
    for revision, is_renewed in ((5, True), (5, False), (4, False), (6, True)):
        assert driver.mark(revoked(("key", "k_1"), revision)) == OK
        left = driver.redis.pttl(key)
        assert isinstance(left, int)
        assert (MARK_MS - 60_000 < left <= MARK_MS) == is_renewed
        driver.redis.pexpire(key, 1_000_000)
    # What is no mark stops nobody, and gives way to one.
    driver.redis.delete(key)
    driver.redis.rpush(key, "something else")
    plan = roomy()
    assert driver.admit("a", plan, caller=(at(1), KEY))[0] == Outcome.OK
    assert driver.mark(revoked(("key", "k_1"), 5)) == OK
    assert driver.admit("b", plan, caller=(at(1), KEY))[0] == Outcome.REVOKED
    driver.redis.set(key, "9 x")
    assert driver.admit("c", plan, caller=(at(1), KEY))[0] == Outcome.OK


def whoever_is_refused_for_a_mark_changes_nothing(driver: Driver) -> None:
    plan = roomy()
    assert driver.admit("a", plan, caller=(at(7), KEY))[0] == Outcome.OK
    assert driver.mark(revoked(("user", "u_1"), 8, terminates=True)) == OK
    before = contents(driver)
    assert driver.admit("b", plan, caller=(at(7), KEY))[0] == Outcome.REVOKED
    assert driver.extend("a", 50, at(7))[0] == Outcome.REVOKED
    assert contents(driver) == before


def a_request_that_was_admitted_or_given_back_before_is_told_so(driver: Driver) -> None:
    plan = roomy()
    first = driver.admit("a", plan, caller=(at(7), KEY))
    assert driver.release("b") == [Outcome.GONE]
    assert driver.mark(revoked(("key", "k_1"), 8)) == OK
    again = driver.admit("a", plan, caller=(at(7), KEY))
    assert again == [Outcome.DUPLICATE, *first[1:]]
    assert driver.admit("b", plan, caller=(at(7), KEY)) == [Outcome.RELEASED]
    assert driver.settle("a")[0] == Outcome.OK


def lost_counters_do_not_hide_a_mark(driver: Driver) -> None:
    plan = roomy()
    assert driver.mark(revoked(("key", "k_1"), 8)) == OK
    assert driver.admit("a", plan, epoch="another", caller=(at(7), KEY))[0] == Outcome.REVOKED
    assert driver.admit("b", plan, epoch="another", caller=(at(8), KEY)) == [Outcome.COLD]
    late = driver.server_now_ms - 1
    assert driver.admit("c", plan, not_after_ms=late, caller=(at(7), KEY)) == [Outcome.EXPIRED]


def an_answer_goes_on_unless_the_revocation_ends_streams(driver: Driver) -> None:
    plan = roomy()
    assert driver.admit("a", plan, expected=10, caller=(at(7), KEY))[0] == Outcome.OK
    assert driver.mark(revoked(("key", "k_1"), 8)) == OK
    assert driver.extend("a", 20, at(7)) == OK
    assert driver.mark(revoked(("key", "k_1"), 9, terminates=True)) == OK
    assert driver.extend("a", 30, at(7)) == [Outcome.REVOKED, 1, PRESENT, 9, 1]
    assert driver.extend("a", 30, at(9)) == OK
    assert driver.balances(plan) == [(1, 0), (0, 30)]


def callers_of_one_batch_are_each_asked_for_themselves(driver: Driver) -> None:
    people: list[tuple[Principal, LayerPlan]] = [
        (caller_of(f"k_{number}", f"u_{number}", f"o_{number % 2}"), roomy()) for number in range(6)
    ]
    assert driver.mark(revoked(("organization", "o_1"), 5)) == OK
    admits = [
        driver.admission(f"{number}-{revision}", plan, caller=(at(revision), person))
        for number, (person, plan) in enumerate(people)
        for revision in (6, 4)
    ]
    outcomes = [each[0] for each in driver.call(*admits).answers]
    fine, refused = Outcome.OK, Outcome.REVOKED
    assert outcomes == [fine, fine, fine, refused] * 3


def a_mark_counts_for_what_comes_later_in_its_batch(driver: Driver) -> None:
    plan = roomy()
    admits = [driver.admission(name, plan, caller=(at(4), KEY)) for name in "abc"]
    marking = revoked(("user", "u_1"), 5), revoked(("key", "somebody-else"), 5)
    answers = driver.call(admits[0], driver.marking(*marking), admits[1], admits[2]).answers
    assert [each[0] for each in answers] == [
        Outcome.OK, Outcome.OK, Outcome.REVOKED, Outcome.REVOKED,
    ]  # fmt: skip


CASES: Final[tuple[Case, ...]] = (
    a_caller_who_was_revoked_later_than_its_node_knows_is_refused,
    the_first_of_several_marks_is_told,
    a_mark_overrules_what_the_rule_says_that_it_overrules,
    a_mark_is_never_lowered,
    a_mark_is_kept_for_seven_days_from_when_it_was_raised,
    whoever_is_refused_for_a_mark_changes_nothing,
    a_request_that_was_admitted_or_given_back_before_is_told_so,
    lost_counters_do_not_hide_a_mark,
    an_answer_goes_on_unless_the_revocation_ends_streams,
    callers_of_one_batch_are_each_asked_for_themselves,
    a_mark_counts_for_what_comes_later_in_its_batch,
)
