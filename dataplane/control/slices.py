"""Work that walks over many resources without making a request wait."""

import asyncio
import time
from typing import Any, Final

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
        """Let everything else that is ready run, if the slice has passed; begin the next when it is this one's turn."""
        if time.perf_counter() >= self._ends_at:
            # The rest is everybody's.
            _baton.free_at = time.perf_counter() + self._seconds
            await rest()
            _baton.free_at = 0.0
            # Whoever waits for it goes first.
            await asyncio.sleep(0)
            while time.perf_counter() < _baton.free_at:  # noqa: ASYNC110 - a matter of turns
                await asyncio.sleep(0)
            self._ends_at = _baton.free_at = time.perf_counter() + self._seconds


async def rest() -> None:
    """Let everything else that is ready run, also what that makes ready."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class _Baton:
    """Whoever walks takes it for a slice: several that walk at once would make each turn of the loop as many slices long.

    Who ends without giving it back loses it when the slice is over.
    """

    __slots__ = ("free_at",)

    def __init__(self) -> None:
        self.free_at = 0.0


_baton: Final = _Baton()


# Any: nobody looks at what they hold.
Remains = list[Any] | dict[Any, Any]


async def let_go(things: list[Remains]) -> None:
    """Empty `things` and each of them, which nobody else may have, so that what they hold is freed in slices.

    To free a hundred thousand objects in one go takes tens of milliseconds. They stay in the collections that they
    are in: a new list of them all would be looked through by the garbage collector, which takes as long.
    """
    slices = Slices()
    while things:
        last = things[-1]
        if isinstance(last, dict):
            for _ in range(min(len(last), _FREED_AT_ONCE)):
                last.popitem()
        else:
            del last[-_FREED_AT_ONCE:]
        if not last:
            things.pop()
        await slices.breathe()
