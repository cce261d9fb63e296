"""How long a node waits before it opens another stream, and to which control plane."""

import random
from enum import Enum, auto
from typing import Final

# A stream that held for so long was no failure.
HELD_SECONDS: Final = 1.0
_FIRST_DELAY_SECONDS: Final = 0.1
# A control plane that is back must be followed within a second.
_LONGEST_DELAY_SECONDS: Final = 1.0
# A token that is refused stays so until an operator acts; so does a limit that is reached.
_REFUSED_DELAY_SECONDS: Final = (1.0, 10.0)
_BANNED_DELAY_SECONDS: Final = (10.0, 30.0)
# 2 to the power of it is more than the longest delay; failures go on being counted.
_MAX_DOUBLINGS: Final = 10


class Ending(Enum):
    """How a stream ended."""

    GOODBYE = auto()
    LOST = auto()
    REFUSED = auto()
    BANNED = auto()


class Reconnects:
    """Goes through the addresses in turn; a whole round without success makes the next one slower."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        """Begin with the first of `addresses`."""
        self._addresses = addresses
        self._next = 0
        self._early_goodbyes = 0
        self.failures = 0

    def address(self) -> str:
        """Return the address to try now; the next call returns the one after."""
        address = self._addresses[self._next]
        self._next = (self._next + 1) % len(self._addresses)
        return address

    def delay_seconds(self, ending: Ending, held_seconds: float) -> float:
        """Return how long to wait after a stream that held for `held_seconds` since its Welcome.

        Delays are random, so that the nodes of a control plane that stopped do not come together.
        """
        if held_seconds >= HELD_SECONDS:
            self.failures = self._early_goodbyes = 0
        if ending is Ending.GOODBYE:
            # Where goodbyes follow each other at once, asking again at once would go in circles.
            self._early_goodbyes += 1
            if self._early_goodbyes == 1:
                return 0.0
        self.failures += 1
        if ending is Ending.REFUSED:
            return _between(*_REFUSED_DELAY_SECONDS)
        if ending is Ending.BANNED:
            return _between(*_BANNED_DELAY_SECONDS)
        rounds, tried_in_round = divmod(self.failures, len(self._addresses))
        if tried_in_round:
            return _between(0.0, _FIRST_DELAY_SECONDS)
        doubled = _FIRST_DELAY_SECONDS * 2 ** min(rounds, _MAX_DOUBLINGS)
        return _between(_FIRST_DELAY_SECONDS, min(_LONGEST_DELAY_SECONDS, doubled))


def _between(shortest: float, longest: float) -> float:
    return random.uniform(shortest, longest)  # noqa: S311 - jitter
