"""Gives back what nobody uses any more, a little at a time.

To free a million objects takes a tenth of a second, in one go, whenever the last request ends that uses
them. So the parts of a map that was replaced are kept until nobody has the map any more, and are then let
go one by one. Until then they cost nothing: whoever has the map has its parts.
"""

import asyncio
import weakref
from collections.abc import Iterable
from typing import Any, Final

from dataplane.control.compiling.state import Map
from dataplane.control.slices import SLICE_SECONDS

_Shards = list[dict[Any, Any]]  # Any: nobody looks at what they hold
# Shards are let go one by one, so that a step lasts a little longer than this.
_STEP_SECONDS: Final = SLICE_SECONDS / 2


class Releasing:
    """Watches maps that were replaced, and gives their parts back once nobody has them."""

    __slots__ = ("_is_due", "_remains", "_watched")

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._watched: dict[int, weakref.ref[Map]] = {}
        self._remains: list[_Shards] = []
        self._is_due = False

    @property
    def pending(self) -> int:
        """Return how many maps are watched or given back at present."""
        return len(self._watched) + len(self._remains)

    def watch(self, maps: Iterable[Map]) -> None:
        """Give the parts of `maps` back once nobody has them; it is called on the event loop."""
        loop = asyncio.get_running_loop()
        for each in maps:
            remains, number = each.remains(), id(each)

            def gone(
                _: weakref.ref[Map],
                remains: _Shards = remains,
                number: int = number,
            ) -> None:
                del self._watched[number]
                if loop.is_closed():
                    return
                self._remains.append(remains)
                if not self._is_due:
                    self._is_due = True
                    # Whoever had it last may have been another thread.
                    loop.call_soon_threadsafe(self._step, loop)

            self._watched[number] = weakref.ref(each, gone)

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        ends_at = loop.time() + _STEP_SECONDS
        while self._remains and loop.time() < ends_at:
            shards = self._remains[-1]
            if shards:
                shards.pop()
            else:
                self._remains.pop()
        self._is_due = bool(self._remains)
        if self._is_due:
            # Not in the next turn: a request takes many of them.
            loop.call_later(2 * _STEP_SECONDS, self._step, loop)
