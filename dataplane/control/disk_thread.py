"""A thread of its own for calls that wait for a disk."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DiskThread:
    """Makes one call after the other; whoever waits for another disk thread is not in the way.

    What is cancelled while it waits goes on in the thread to its end.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    async def run(self, call: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        """Return what `call` returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **named))

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call after those so far; nobody learns what comes of it."""
        self._pool.submit(call)

    def close(self, last_call: Callable[[], object]) -> None:
        """Make a last call, and end the thread after it; does not wait for that."""
        with contextlib.suppress(RuntimeError):  # It was closed before.
            self._pool.submit(last_call)
        self._pool.shutdown(wait=False)
