"""Work that walks over many resources without making a request wait."""

import asyncio
import time
from typing import Final

# A request in flight must not feel a new configuration; switching costs a hundredth of this.
SLICE_SECONDS: Final = 0.002
# To read one message from a socket takes several turns of the event loop, to answer a request many:
# with one turn for each slice they would be as slow as the slices.
_TURNS: Final = 4
# A tenth of a slice.
_FREED_AT_ONCE: Final = 500


class Slices:
    """Gives the event loop back whenever one slice of work has passed.

        slices = Slices()
        for each in many:
            …
            await slices.breathe()

    Loops whose bodies take less than a microsecond ask `is_over` first: it costs less than awaiting.
    """

    __slots__ = ("_ends_at", "_seconds")

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        """Begin the first slice, which lasts `seconds`."""
        self._seconds = seconds
        self._ends_at = time.perf_counter() + seconds

    @property
    def is_over(self) -> bool:
        """Return whether the slice has passed, so that the next `breathe` gives the loop back."""
        return time.perf_counter() >= self._ends_at

    async def breathe(self) -> None:
        """Let everything else that is ready run, if the slice has passed; begin the next."""
        if time.perf_counter() >= self._ends_at:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._ends_at = time.perf_counter() + self._seconds


async def let_go(things: list[object]) -> None:
    """Empty `things`, which nobody else may have, so that what they hold is freed in slices.

    To free a hundred thousand objects in one go takes tens of milliseconds.
    """
    slices = Slices()
    while things:
        del things[-_FREED_AT_ONCE:]
        await slices.breathe()
