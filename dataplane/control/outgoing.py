"""What a node has to say on one stream: bounded, in order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from tollkeeper.config.v1 import config_service_pb2 as pb

# Answers are small and the control plane reads them at once.
_MAX_WAITING: Final = 1_000
# A control plane that reads nothing for so long is dead.
_SEND_SECONDS: Final = 10.0


class Outgoing:
    """The messages that wait to be sent."""

    def __init__(self) -> None:
        """Begin with nothing to say."""
        self._queue: asyncio.Queue[pb.StreamConfigRequest | None] = asyncio.Queue(_MAX_WAITING)

    def say(self, message: pb.StreamConfigRequest) -> None:
        """Say `message` after what was said before.

        Raises:
            asyncio.QueueFull: 1,000 messages wait: the control plane does not listen.
        """
        self._queue.put_nowait(message)

    async def send(self, message: pb.StreamConfigRequest) -> None:
        """Say `message` as soon as there is room.

        Raises:
            TimeoutError: There is none for 10 s: the control plane does not listen.
        """
        async with asyncio.timeout(_SEND_SECONDS):
            await self._queue.put(message)

    async def finish(self) -> None:
        """Return when everything was handed over; nothing can be said after."""
        await self._queue.put(None)
        await self._queue.join()

    def end(self) -> None:
        """Let go of whoever takes the messages: nobody listens any more, and what waits is dropped."""
        while not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncIterator[pb.StreamConfigRequest]:
        """Yield what is said, until `finish`."""
        while (message := await self._queue.get()) is not None:
            yield message
            # Back here the stream has taken it.
            self._queue.task_done()
        self._queue.task_done()
