"""Ends tasks for certain."""

import asyncio
import random
from typing import Any, Final  # Any: what a task returns is nobody's business here

# On the average longer than a task that was cancelled needs to end. Never the same: a task that wakes
# up as often as it is cancelled would be met in the same command each time.
_AGAIN_SECONDS: Final = (0.02, 0.08)


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
            await asyncio.wait(left, timeout=random.uniform(*_AGAIN_SECONDS))  # noqa: S311 - no secret
        except asyncio.CancelledError:
            is_cancelled = True
        left = {task for task in left if not task.done()}
    if is_cancelled:
        raise asyncio.CancelledError
