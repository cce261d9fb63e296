"""Revocations in Redis, as nodes write them and as a node that has not heard of them meets them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dataplane.domain.limiting import Demand, LimitsUnavailable, Unit, Window, plan_of
from dataplane.domain.revocations import Revocation
from dataplane.limits.counters import MARK_MS
from dataplane.limits.desk import open_counters
from dataplane.limits.limiter import Limiter
from dataplane.limits.marks import MOST_REMEMBERED, Mark, Marks, Overruled
from dataplane.limits.operations import Operation
from dataplane.limits.reservation import Reservation
from tests.limits.callers import LATER, at, caller_of, revoked, subjects_of
from tests.limits.line import line_to
from tests.limits.plans import budget, layer
from tests.limits.probe import Probe

PLAN = plan_of(
    [layer(Unit.REQUESTS, Window.TOTAL, 100), budget(1_000, Window.TOTAL, is_hard=False)]
)
KEY = caller_of()
NOTHING = [(0, 0), (0, 0)]


async def reserve(limiter: Limiter, name: str = "a", revision: int = 7) -> Reservation:
    """Reserve for the caller, who was let in by a configuration of this revision."""
    demand = Demand(1, 10, 5)
    return await limiter.reserve(name, PLAN, demand, b"{}", position=at(revision), principal=KEY)


@asynccontextmanager
async def other_node(probe: Probe) -> AsyncIterator[Limiter]:
    """Connect another node to the same counters."""
    limiter = await Limiter.connect(probe.redis_url, hash_tag=probe.hash_tag)
    try:
        yield limiter
    finally:
        await limiter.aclose(1.0)


def marks_in(probe: Probe) -> set[str]:
    prefix = probe.keyspace.mark("", "").removesuffix(":")
    found: Any = probe.redis.keys(f"{prefix}*")
    return {key.decode().removeprefix(prefix) for key in found}


@pytest.mark.parametrize("place", range(3), ids=["credential", "user", "organization"])
async def test_a_node_that_is_cut_off_refuses_who_was_revoked_from_its_next_admit_on(
    probe: Probe, place: int
) -> None:
    revocation = revoked(subjects_of(KEY)[place], 8, terminates=place == 0)
    async with other_node(probe) as connected:
        (await reserve(probe.limiter, "before")).settle(1, 1)
        before = await probe.balances(PLAN)

        connected.mark_revoked(revocation)
        await probe.until(lambda: not connected.unwritten_marks)

        for name in ("a", "b"):
            with pytest.raises(Overruled) as refused:
                await reserve(probe.limiter, name)
            assert refused.value.revocation == revocation
        assert await probe.balances(PLAN) == before
        # As soon as the node has caught up it decides by itself.
        (await reserve(probe.limiter, "c", revision=8)).settle(1, 1)


async def test_whoever_has_looked_at_its_figures_before_is_refused_too(probe: Probe) -> None:
    # To look, nobody says who asks.
    assert await probe.balances(PLAN) == NOTHING
    probe.limiter.mark_revoked(revoked(("key", "k_1"), 8))
    await probe.until(lambda: not probe.limiter.unwritten_marks)

    with pytest.raises(Overruled):
        await reserve(probe.limiter)


async def test_a_revocation_that_is_told_again_or_late_changes_nothing(probe: Probe) -> None:
    limiter = probe.limiter
    for revision in (8, 8, 5):
        limiter.mark_revoked(revoked(("key", "k_1"), revision))
        await probe.until(lambda: not limiter.unwritten_marks)

    with pytest.raises(Overruled) as refused:
        await reserve(limiter)
    assert refused.value.revocation.revision == 8


async def test_a_device_that_never_had_a_user_needs_no_mark(probe: Probe) -> None:
    probe.limiter.mark_revoked(revoked(("device", "d_1"), 8, organization=""))
    probe.limiter.mark_revoked(revoked(("device", "d_2"), 8))
    await probe.until(lambda: not probe.limiter.unwritten_marks)

    assert marks_in(probe) == {"device:d_2"}


async def test_many_revocations_at_once_are_all_written(probe: Probe) -> None:
    for number in range(1_234):
        probe.limiter.mark_revoked(revoked(("key", f"k_{number}"), number))
    await probe.until(lambda: not probe.limiter.unwritten_marks)

    assert len(marks_in(probe)) == 1_234


async def test_revocations_wait_for_a_server_that_is_away(probe: Probe) -> None:
    async with line_to(probe.redis_url) as line:
        limiter = await Limiter.connect(line.url, hash_tag=probe.hash_tag)
        line.is_cut = True
        await probe.until(lambda: not limiter.is_available)
        for number in range(120):
            limiter.mark_revoked(revoked(("user", f"u_{number}"), 8))
        assert (limiter.unwritten_marks, marks_in(probe)) == (120, set())

        line.is_cut = False
        await probe.until(lambda: not limiter.unwritten_marks)
        await limiter.aclose(1.0)

    assert len(marks_in(probe)) == 120
    with pytest.raises(Overruled):
        await reserve(probe.limiter)


async def test_a_node_that_stops_writes_what_it_knows(probe: Probe) -> None:
    async with other_node(probe) as limiter:
        for number in range(120):
            limiter.mark_revoked(revoked(("user", f"u_{number}"), 8))

    assert len(marks_in(probe)) == 120


async def test_a_server_that_lost_its_data_gets_the_marks_again(own_probe: Probe) -> None:
    own_probe.limiter.mark_revoked(revoked(("key", "k_1"), 8))
    await own_probe.until(lambda: not own_probe.limiter.unwritten_marks)
    own_probe.redis.flushall()

    with pytest.raises(LimitsUnavailable):
        await reserve(own_probe.limiter, "cold")
    assert await open_counters(own_probe.redis_url, own_probe.hash_tag) is not None
    await own_probe.until(lambda: marks_in(own_probe) == {"key:k_1"})
    await own_probe.until(lambda: own_probe.limiter.is_available)

    with pytest.raises(Overruled):
        await answered(own_probe.limiter)


async def answered(limiter: Limiter) -> None:
    """Reserve; on a busy machine counters may be away for a moment, which is not the point here."""
    for _ in range(20):
        try:
            await reserve(limiter)
        except LimitsUnavailable:
            continue
        return


async def test_counters_that_were_lost_and_rebuilt_unseen_get_the_marks_again(
    own_probe: Probe,
) -> None:
    own_probe.limiter.mark_revoked(revoked(("key", "k_1"), 8))
    await own_probe.until(lambda: not own_probe.limiter.unwritten_marks)

    # Between two looks, so that nobody saw them cold.
    own_probe.redis.flushall()
    await open_counters(own_probe.redis_url, own_probe.hash_tag)

    await own_probe.until(lambda: marks_in(own_probe) == {"key:k_1"})


async def test_a_revoked_caller_whose_first_attempt_was_lost_is_refused_and_holds_nothing(
    probe: Probe,
) -> None:
    probe.limiter.mark_revoked(revoked(("key", "k_1"), 8))
    await probe.until(lambda: not probe.limiter.unwritten_marks)
    async with line_to(probe.redis_url) as line:
        limiter = await Limiter.connect(line.url, hash_tag=probe.hash_tag)
        line.loses, line.hangs_up = 1, True

        with pytest.raises(Overruled):
            await reserve(limiter)

        assert len(line.lost) == 1
        await probe.until(lambda: probe.reservation("a") == b"released")
        await limiter.aclose(1.0)
    assert await probe.balances(PLAN) == NOTHING


async def test_an_answer_under_way_gets_no_more_when_its_revocation_ends_streams(
    probe: Probe,
) -> None:
    reservation = await reserve(probe.limiter)
    for revision, terminates in ((8, False), (9, True)):
        probe.limiter.mark_revoked(revoked(("key", "k_1"), revision, terminates=terminates))
        await probe.until(lambda: not probe.limiter.unwritten_marks)

        assert await reservation.extend(10 * revision) is not terminates

    assert await probe.balances(PLAN) == [(1, 0), (0, 80)]
    reservation.settle(1, 7)
    assert await probe.balances(PLAN) == [(1, 0), (7, 0)]


class Desk:
    """Takes operations, and answers them when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[Revocation, ...]] = []
        self._ends: list[Callable[[bool], None]] = []
        self.marks = Marks(self.take, lambda: self.now)

    def take(self, operation: Operation, on_end: Callable[[bool], None]) -> None:
        assert isinstance(operation, Mark)
        self.asked.append(operation.revocations)
        self._ends.append(on_end)

    def answer(self, is_answered: bool = True) -> None:
        self._ends.pop(0)(is_answered)

    def answer_all(self) -> list[Revocation]:
        """Answer until nothing is asked any more; return what was asked in that time."""
        first = len(self.asked) - len(self._ends)
        while self._ends:
            self.answer()
        return [each for asked in self.asked[first:] for each in asked]


def key(number: int, revision: int = 8) -> Revocation:
    return revoked(("key", f"k_{number}"), revision)


def test_one_operation_is_under_way_at_a_time_and_takes_along_what_came_meanwhile() -> None:
    desk = Desk()
    for number in range(60):
        desk.marks.note(key(number))

    assert desk.asked == [(key(0),)]
    desk.answer()
    assert desk.asked[1:] == [tuple(key(number) for number in range(1, 51))]
    # A later one of a subject that is under way.
    desk.marks.note(key(20, revision=9))
    desk.answer()
    assert desk.asked[2:] == [(key(20, revision=9), *(key(number) for number in range(51, 60)))]
    assert len(desk.marks) == 10
    desk.answer()
    assert (len(desk.marks), len(desk.asked)) == (0, 3)


def test_only_the_newest_of_very_many_revocations_are_remembered() -> None:
    desk = Desk()
    for number in range(MOST_REMEMBERED + 70):
        desk.marks.note(key(number))
    assert len(desk.marks) == MOST_REMEMBERED
    first, *written = desk.answer_all()
    assert first == key(0)
    assert written == [key(number) for number in range(70, MOST_REMEMBERED + 70)]

    desk.marks.renew()

    assert desk.answer_all() == written


def test_what_was_revoked_more_than_a_week_ago_is_not_written_again() -> None:
    desk = Desk()
    desk.marks.note(key(1))
    desk.now += 60.0
    desk.marks.note(key(2))
    desk.answer_all()

    desk.now = MARK_MS / 1000
    desk.marks.renew()

    assert desk.answer_all() == [key(2)]


def test_what_is_lost_while_it_is_written_is_written_again() -> None:
    desk = Desk()
    desk.marks.note(key(1))

    desk.marks.renew()
    desk.answer()

    assert desk.asked == [(key(1),), (key(1),)]
    desk.answer()
    assert len(desk.marks) == 0


def test_what_was_given_up_goes_with_the_next_one() -> None:
    desk = Desk()
    desk.marks.note(key(1))
    desk.answer(is_answered=False)
    assert len(desk.asked) == 1

    desk.marks.note(key(2))

    assert desk.asked[1:] == [(key(1), key(2))]


def test_of_one_subject_the_latest_revocation_is_remembered() -> None:
    desk = Desk()
    later = revoked(("key", "k_1"), 1, LATER)
    for each in (key(1), later, key(1, revision=9)):
        desk.marks.note(each)
        desk.answer_all()
    assert desk.asked == [(key(1),), (later,)]

    desk.marks.renew()

    assert desk.answer_all() == [later]


async def test_a_closed_limiter_forgets_what_it_could_not_write(probe: Probe) -> None:
    async with line_to(probe.redis_url) as line:
        limiter = await Limiter.connect(line.url, hash_tag=probe.hash_tag)
        line.is_cut = True
        await probe.until(lambda: not limiter.is_available)
        limiter.mark_revoked(key(1))

        async with asyncio.timeout(2.0):
            assert await limiter.aclose(0.05) == 1
    assert marks_in(probe) == set()
