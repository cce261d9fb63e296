"""Changes of state that tasks of one event loop wait for, instead of looking again and again."""

import asyncio
import contextlib


class Changes:
    """Counts changes of something; whoever knows the number of the last one misses none.

        number = changes.number
        …look at the state, and do what is to be done, however long that takes…
        await changes.after(number, seconds)

    What changed is not told: each that waits looks for itself. Any number may wait.

    Attributes:
        number: How many changes there were.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.number = 0
        self._event = asyncio.Event()

    def note(self) -> None:
        """Wake all that wait: something has changed."""
        self.number += 1
        self._event.set()
        self._event.clear()

    async def after(self, number: int, seconds: float | None = None) -> None:
        """Return when there was a change after `number`, at once if there is one already.

        Where there is none it returns after `seconds`; None: it waits as long as it takes.
        """
        if self.number != number:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
