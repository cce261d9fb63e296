"""Ends tasks for certain."""

import asyncio
from typing import Any, Final  # Any: what a task returns is nobody's business here

# Longer than a task that was cancelled needs to end.
_AGAIN_SECONDS: Final = 0.05


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended, however they did.

    Cancelled again and again: `asyncio.wait_for` before Python 3.12, which the Redis client awaits in
    every command, forgets a cancellation that meets the end of what it waits for. Where the caller
    itself is cancelled meanwhile, that is raised when they have ended.
    """
    left = set(tasks)
    is_cancelled = False
    while left:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=_AGAIN_SECONDS)
        except asyncio.CancelledError:
            is_cancelled = True
        left = {task for task in left if not task.done()}
    if is_cancelled:
        raise asyncio.CancelledError
