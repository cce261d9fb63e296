"""Which streams may send everything now: a few at a time, so that those who come back together do not slow each other."""

from collections import deque
from typing import Final, Protocol

# Eight chunks in the making and eight connections that are filled: enough for any link, and little memory.
MAX_FULL_TRANSFERS: Final = 8


class Waiting(Protocol):
    """Something that waits at the gate."""

    def admit(self) -> None:
        """Look again: the gate may be open. Must not block or raise."""
        ...


class FullGate:
    """Lets `places` in at a time. Who was told and does not come holds up nobody: whoever asks next has the place."""

    def __init__(self, places: int = MAX_FULL_TRANSFERS) -> None:
        self._places = places
        self._inside: set[Waiting] = set()
        self._queue: deque[Waiting] = deque()

    @property
    def inside(self) -> int:
        """How many are inside."""
        return len(self._inside)

    def enter(self, who: Waiting) -> bool:
        """Let `who` in, or queue it up and say no: it is told when to ask again. Who is inside stays inside."""
        if who in self._inside:
            return True
        if len(self._inside) < self._places:
            self._forget(who)
            self._inside.add(who)
            return True
        if who not in self._queue:
            self._queue.append(who)
        return False

    def leave(self, who: Waiting) -> None:
        """Let others in for `who`, whether it was inside, queued or neither."""
        self._forget(who)
        self._inside.discard(who)
        # Also for one that was told and needs no place any more: those behind it would not hear of it.
        for _ in range(min(len(self._queue), self._places - len(self._inside))):
            self._queue.popleft().admit()

    def _forget(self, who: Waiting) -> None:
        if who in self._queue:
            self._queue.remove(who)
