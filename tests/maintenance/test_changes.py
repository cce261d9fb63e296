"""Whoever waits for changes misses none, and waits no longer than it wants to."""

import asyncio

from dataplane.changes import Changes


async def test_a_change_wakes_all_that_wait() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.after(changes.number)) for _ in range(3)]
    await asyncio.sleep(0)

    changes.note()

    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_change_while_nobody_waits_is_not_missed() -> None:
    changes = Changes()
    seen = changes.number
    changes.note()

    async with asyncio.timeout(5):
        await changes.after(seen)


async def test_a_change_that_was_seen_wakes_nobody() -> None:
    changes = Changes()
    changes.note()
    waiting = asyncio.create_task(changes.after(changes.number))

    for _ in range(5):
        await asyncio.sleep(0)

    assert not waiting.done()
    waiting.cancel()


async def test_without_a_change_it_returns_in_time() -> None:
    changes = Changes()

    async with asyncio.timeout(5):
        await changes.after(changes.number, 0.01)
        await changes.after(changes.number, -1.0)

    assert changes.number == 0
