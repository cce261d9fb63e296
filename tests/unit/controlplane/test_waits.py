"""Waits count who is done, wherever they are, and how fast."""

import asyncio

from controlplane.domain.revocations import AppliedChange, AppliedRevocation
from controlplane.snapshots.snapshot import Position
from controlplane.snapshots.waits import Wait

EPOCH = "e"


def at(revision: int, epoch: str = EPOCH) -> Position:
    return Position(epoch, revision)


async def test_a_receipt_says_who_refuses_since_when_and_whose_disk_knows() -> None:
    wait = Wait(EPOCH, 7, since_s=100.0, revocation_id="r")
    wait.join(["a", "b", "c", "d"])

    wait.note_ack("a", is_kept=True, now_s=100.0625)
    wait.note_ack("b", is_kept=False, now_s=100.125)
    wait.note_position("c", at(7), 100.25)
    wait.note_position("d", at(6), 100.5)

    receipt = wait.receipt()
    assert receipt.applied == (
        AppliedRevocation("a", 62, is_kept=True),
        AppliedRevocation("b", 125, is_kept=False),
        AppliedRevocation("c", 250, is_kept=False),
    )
    assert receipt.missing == ("d",)
    assert not await wait.until_complete(1)


async def test_a_disk_that_answers_a_little_later_is_waited_for() -> None:
    wait = Wait(EPOCH, 7, since_s=0.0, revocation_id="r")
    wait.join(["a"])
    wait.note_position("a", at(7), 0.0015)

    waiting = asyncio.create_task(wait.until_complete(60_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    wait.note_ack("a", is_kept=True, now_s=0.002)

    assert await asyncio.wait_for(waiting, 1)
    assert wait.receipt().applied == (AppliedRevocation("a", 1, is_kept=True),)


async def test_a_disk_that_does_not_answer_holds_up_a_receipt_for_a_moment_only() -> None:
    wait = Wait(EPOCH, 7, since_s=0.0, revocation_id="r")
    wait.join(["a"])
    wait.note_position("a", at(7), 0.0015)

    assert await asyncio.wait_for(wait.until_complete(60_000), 5)

    assert wait.receipt().applied == (AppliedRevocation("a", 1, is_kept=False),)


async def test_who_goes_is_missing_from_a_receipt_and_not_waited_for_by_a_change() -> None:
    receipt, change = Wait(EPOCH, 7, 0.0, "r"), Wait(EPOCH, 7, 0.0)
    for wait in (receipt, change):
        wait.join(["a", "b"])
        wait.note_position("a", at(8), 0.5)
        wait.leave("b")

    assert receipt.receipt().missing == ("b",)
    assert await change.until_complete(60_000)
    assert change.propagation().applied == (AppliedChange("a", 500),)
    assert change.propagation().missing == ()


async def test_another_epoch_contains_nothing_of_this_one() -> None:
    wait = Wait(EPOCH, 7, 0.0)
    wait.join(["a"])

    wait.note_position("a", at(1_000, "another"), 0.0)

    assert wait.missing == ("a",)


async def test_who_comes_meanwhile_is_waited_for_once() -> None:
    wait = Wait(EPOCH, 7, 0.0)
    wait.join(["a"])
    wait.note_position("a", at(7), 0.0)

    wait.join(["a", "b"])

    assert wait.missing == ("b",)
    assert not await wait.until_complete(0)
