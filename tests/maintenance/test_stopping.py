"""Tasks end for certain, also those that forget cancellations."""

import asyncio
import contextlib

from dataplane.maintenance.stopping import stop


async def forgetful(is_over: asyncio.Event) -> None:
    """Forget each cancellation of the half of a turn, as commands of the Redis client may."""
    while not is_over.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.03)


async def test_a_task_that_is_met_in_the_same_step_again_and_again_ends() -> None:
    is_over = asyncio.Event()
    task = asyncio.create_task(forgetful(is_over))
    # It is in the half in which it forgets; cancelled every 50 ms it would be there each time.
    await asyncio.sleep(0)

    stopping = asyncio.create_task(stop(task))
    await asyncio.wait({stopping}, timeout=5)

    has_ended = task.cancelled()
    is_over.set()
    await stopping
    assert has_ended
