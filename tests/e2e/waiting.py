"""Waiting for what must come true, with a deadline and never for a fixed time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

# Generous: a machine may be busy, and no promise names a bound where this one is used.
PATIENCE_S: Final = 20.0
_Value = TypeVar("_Value")


def eventually(
    look: Callable[[], _Value], deadline_s: float = PATIENCE_S, *, pause_s: float = 0.02
) -> _Value:
    """Return the first true value of `look`, which is asked again `pause_s` seconds after it answered.

    Raises:
        AssertionError: There was none in `deadline_s` seconds; it shows the last value.
    """
    ends_at = time.monotonic() + deadline_s
    while not (value := look()):
        assert time.monotonic() < ends_at, f"not so after {deadline_s:.1f} s: {value!r}"
        time.sleep(pause_s)
    return value


async def eventually_async(
    look: Callable[[], Awaitable[_Value]], deadline_s: float = PATIENCE_S
) -> _Value:
    """Return the first true value that `look` gives, as `eventually` does."""
    ends_at = time.monotonic() + deadline_s
    while not (value := await look()):
        assert time.monotonic() < ends_at, f"not so after {deadline_s:.1f} s: {value!r}"
        await asyncio.sleep(0.02)
    return value
