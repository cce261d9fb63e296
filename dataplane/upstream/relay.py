"""From a provider's stream to a caller's: the head is held back until there is content.

Until the first content the answer can still become a proper HTTP error. After `SILENCE_SECONDS`
without any, the 200 goes out all the same, and pings keep the connection alive.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import httpx

from dataplane.domain.refusals import Reason, Refusal
from dataplane.upstream.answers import StreamReader

SILENCE_SECONDS: Final = 15.0


class Relay:
    """Passes one stream on, event by event, with the provider's pace and the caller's.

    Args:
        chunks: The provider's bytes.
        reader: What reads them on the way.
        ping: What keeps a silent stream alive, in the caller's dialect.
        on_complete: Called once, before the bytes that end the answer are handed out.
        on_content: Called once, when the first content is there.
        silence_seconds: How long to wait for content before the head goes out.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        reader: StreamReader,
        ping: bytes,
        on_complete: Callable[[], None],
        on_content: Callable[[], None],
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._chunks = chunks
        self._reader = reader
        self._ping = ping
        self._on_complete = on_complete
        self._on_content = on_content
        self._silence_seconds = silence_seconds
        self._pending: asyncio.Task[bytes] | None = None
        self._is_at_end = False
        self._is_completed = False
        self._has_noted_content = False

    async def head(self) -> bytes:
        """Return what the caller gets first: with content, or nothing after a long silence.

        Raises:
            Refusal: The provider failed before there was content.
        """
        held = b""
        while not (self._reader.has_content or self._reader.is_complete):
            self._raise_failure()
            if self._is_at_end:
                raise Refusal(Reason.UPSTREAM_INVALID_RESPONSE, "The provider's answer is empty.")
            chunk = await self._next_or_silence()
            if chunk is None:
                return held
            held += self._read(chunk)
        self._note_content()
        return held

    async def rest(self) -> AsyncGenerator[bytes]:
        """Yield everything after the head.

        Raises:
            Refusal: The provider failed, was cut, or ended without saying that it is done.
        """
        while self._pending is not None:
            chunk = await self._next_or_silence()
            if out := self._ping if chunk is None else self._read(chunk):
                yield out
        try:
            while not self._is_at_end:
                self._raise_failure()
                if out := self._read(await anext(self._chunks, b"")):
                    yield out
        except httpx.TransportError as error:
            raise answer_was_cut() from error
        self._raise_failure()
        if not self._reader.is_complete:
            raise answer_was_cut()

    async def aclose(self) -> None:
        """Stop waiting for the provider."""
        if self._pending is not None:
            self._pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                await self._pending
            self._pending = None

    def _read(self, chunk: bytes) -> bytes:
        if chunk:
            out = self._reader.feed(chunk)
        else:
            self._is_at_end = True
            out = self._reader.finish()
        if self._reader.has_content:
            self._note_content()
        if self._reader.is_complete and not self._is_completed:
            self._is_completed = True
            self._on_complete()
        return out

    def _note_content(self) -> None:
        if not self._has_noted_content:
            self._has_noted_content = True
            self._on_content()

    def _raise_failure(self) -> None:
        if self._reader.failure is not None:
            raise self._reader.failure

    async def _next_or_silence(self) -> bytes | None:
        """Return the next chunk, empty at the end, or None when none came in time."""
        if self._pending is None:
            self._pending = asyncio.create_task(self._next())
        await asyncio.wait((self._pending,), timeout=self._silence_seconds)
        if not self._pending.done():
            return None
        pending, self._pending = self._pending, None
        try:
            return pending.result()
        except httpx.TransportError as error:
            raise answer_was_cut() from error

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")


def answer_was_cut() -> Refusal:
    """Return the refusal for an answer that breaks off."""
    return Refusal(Reason.UPSTREAM_ERROR, "The provider's answer was cut.")
