"""A flood is refused from memory, and nobody is refused for longer than the guards say."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from dataplane.domain.guards import Check, Guard, Verdict
from dataplane.limits import guard_memory
from dataplane.limits.guard_memory import MAX_DELAY_S, REFUSALS_PER_S, GuardMemory

OF_ADDRESS = Guard("of_address", burst=1, interval_ms=1_000)
IN_ALL = Guard("in_all", burst=1, interval_ms=1_000)


class Scripted:
    """Guards that say what the test says, and count how often they are asked."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self.asked = 0

    async def admit(self, checks: Sequence[Check]) -> Verdict:
        self.asked += 1
        return self.verdict


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def check(subject: str, guard: Guard = OF_ADDRESS) -> Check:
    return Check(guard, subject)


async def test_who_has_to_wait_is_refused_without_asking_until_then() -> None:
    guards, clock = Scripted(), Clock()
    memory = GuardMemory(guards, clock)
    guards.verdict = Verdict(2_000, check("a"))
    assert await memory.admit([check("a")]) == guards.verdict

    clock.seconds += 1.5
    remembered = await memory.admit([check("a")])
    guards.verdict = Verdict()
    clock.seconds += 0.5
    later = await memory.admit([check("a")])

    assert (remembered.retry_after_ms, remembered.binding) == (500, check("a"))
    assert later.is_admitted
    assert guards.asked == 2


async def test_others_are_asked_about_and_a_guard_over_all_binds_all() -> None:
    guards = Scripted()
    memory = GuardMemory(guards)
    guards.verdict = Verdict(60_000, check("a"))
    await memory.admit([check("a"), check("all", IN_ALL)])
    guards.verdict = Verdict(90_000, check("all", IN_ALL))

    other = await memory.admit([check("b"), check("all", IN_ALL)])
    third = await memory.admit([check("c"), check("all", IN_ALL)])
    first = await memory.admit([check("a"), check("all", IN_ALL)])

    assert other.binding == third.binding == first.binding == check("all", IN_ALL)
    assert guards.asked == 2


async def test_whoever_was_let_through_is_asked_about_again() -> None:
    guards = Scripted()
    memory = GuardMemory(guards)

    for _ in range(3):
        assert (await memory.admit([check("a")])).is_admitted

    assert guards.asked == 3


async def test_the_memory_has_a_bound_and_forgets_what_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_memory, "MAX_REMEMBERED", 2)
    guards, clock = Scripted(), Clock()
    memory = GuardMemory(guards, clock)

    async def refuse(subject: str) -> None:
        guards.verdict = Verdict(1_000, check(subject))
        await memory.admit([check(subject)])

    for subject in ("a", "b", "c", "c"):
        await refuse(subject)
    assert guards.asked == 4  # no room for the third: it is asked about each time

    clock.seconds += 2
    await refuse("c")
    await refuse("c")
    assert guards.asked == 5


async def test_refusals_beyond_the_pace_wait_for_their_turn_and_for_a_second_at_most() -> None:
    guards = Scripted()
    memory = GuardMemory(guards)
    guards.verdict = Verdict(60_000, check("a"))
    began_at = time.monotonic()

    async def refused() -> float:
        assert not (await memory.admit([check("a")])).is_admitted
        return time.monotonic() - began_at

    await asyncio.gather(*(refused() for _ in range(60)))
    took_s = time.monotonic() - began_at
    many = await asyncio.gather(*(refused() for _ in range(1_000)))

    assert 59 / REFUSALS_PER_S <= took_s < 2
    assert 0.9 * MAX_DELAY_S <= max(many) - took_s < 3 * MAX_DELAY_S


async def test_whoever_is_let_through_does_not_wait_behind_refusals() -> None:
    guards = Scripted()
    memory = GuardMemory(guards)
    guards.verdict = Verdict(60_000, check("a"))
    flood = [asyncio.create_task(memory.admit([check("a")])) for _ in range(100)]
    await asyncio.sleep(0)
    guards.verdict = Verdict()

    assert (await asyncio.wait_for(memory.admit([check("b")]), 0.4)).is_admitted

    assert not all(task.done() for task in flood)
    await asyncio.gather(*flood)
