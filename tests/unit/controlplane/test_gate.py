"""The gate lets a few in at a time and is held up by nobody."""

import pytest

from controlplane.snapshots.gate import FullGate


class Visitor:
    """Counts how often it was told to look again."""

    def __init__(self) -> None:
        self.told = 0

    def admit(self) -> None:
        self.told += 1


@pytest.fixture
def visitors() -> list[Visitor]:
    return [Visitor() for _ in range(4)]


def test_so_many_are_inside_and_the_others_wait(visitors: list[Visitor]) -> None:
    gate = FullGate(places=2)

    assert [gate.enter(each) for each in visitors] == [True, True, False, False]
    assert gate.inside == 2
    assert gate.enter(visitors[0]), "who is inside stays inside"


def test_who_leaves_has_the_next_one_told_in_the_order_of_their_coming(
    visitors: list[Visitor],
) -> None:
    gate = FullGate(places=2)
    for each in visitors:
        gate.enter(each)

    gate.leave(visitors[1])

    assert [each.told for each in visitors] == [0, 0, 1, 0]
    assert gate.enter(visitors[2])
    assert not gate.enter(visitors[3])


def test_who_was_told_and_does_not_come_holds_up_nobody(visitors: list[Visitor]) -> None:
    gate = FullGate(places=1)
    first, deaf, other, _ = visitors
    for each in (first, deaf):
        gate.enter(each)

    gate.leave(first)

    assert deaf.told == 1
    assert gate.enter(other)
    assert not gate.enter(deaf)


def test_who_leaves_the_queue_frees_no_place(visitors: list[Visitor]) -> None:
    gate = FullGate(places=1)
    first, second, third, _ = visitors
    for each in (first, second, third):
        gate.enter(each)

    gate.leave(second)

    assert (second.told, third.told) == (0, 0)
    gate.leave(first)
    assert (second.told, third.told) == (0, 1)
