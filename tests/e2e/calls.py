"""Many calls at once: a client that reads streams to their end and says how each of them ended."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

_STREAM_END: Final = "data: [DONE]"
_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How one call ended.

    Attributes:
        status: Of HTTP; 0 when there was no answer.
        code: That of a refusal; empty for none.
        request_id: The gateway's.
        body: What arrived.
        is_whole: It arrived to its end.
    """

    status: int
    code: str
    request_id: str
    body: str
    is_whole: bool

    @property
    def text(self) -> str:
        """The text of an OpenAI stream, put together."""
        events = [line[6:] for line in self.body.splitlines() if line.startswith("data: {")]
        chunks: list[dict[str, Any]] = [json.loads(event) for event in events]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Client:
    """Calls as one API key, over as many connections as there are calls."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def chat(
        self,
        base_url: str,
        *,
        model: str = "mock-echo",
        content: str = "hello",
        stream: bool = False,
        max_tokens: int | None = None,
        api_key: str | None = None,
        on_content: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Ask `model` and read its answer to the end; a broken connection is an answer too.

        `on_content` is called when the first content of a stream is there.
        """
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "stream": stream,
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        headers = {"authorization": f"Bearer {api_key}"} if api_key else None
        received: list[str] = []
        status, code, request_id = 0, "", ""
        try:
            async with self._session.post(
                f"{base_url}/v1/chat/completions", json=body, headers=headers
            ) as response:
                status = response.status
                code = response.headers.get("x-tollkeeper-error", "")
                request_id = response.headers.get("x-request-id", "")
                async for line in response.content:
                    received.append(line.decode())
                    if '"content":"' in received[-1]:
                        on_content()
        except aiohttp.ClientError:
            return Answer(status, code, request_id, "".join(received), is_whole=False)
        text = "".join(received)
        is_whole = not stream or status != 200 or _STREAM_END in text
        return Answer(status, code, request_id, text, is_whole)


@contextlib.asynccontextmanager
async def client_of(api_key: str) -> AsyncIterator[Client]:
    """Open a client; its connections end with the block."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector,
        headers={"authorization": f"Bearer {api_key}"},
        timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
    ) as session:
        yield Client(session)


class Streams:
    """Paced streams that are open until they end by themselves."""

    def __init__(self, client: Client, base_url: str, model: str, number: int) -> None:
        self._started = asyncio.Semaphore(0)
        self._number = number
        self._tasks = [
            asyncio.create_task(self._stream(client, base_url, model)) for _ in range(number)
        ]

    async def _stream(self, client: Client, base_url: str, model: str) -> Answer:
        is_first = True

        def started() -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                self._started.release()

        return await client.chat(base_url, model=model, stream=True, on_content=started)

    async def all_started(self, deadline_s: float = 20.0) -> None:
        """Wait until each has delivered content."""
        for _ in range(self._number):
            try:
                await asyncio.wait_for(self._started.acquire(), deadline_s)
            except TimeoutError:
                ended = [task.result() for task in self._tasks if task.done()]
                raise AssertionError(f"not all streams began; ended: {ended}") from None

    async def answers(self) -> list[Answer]:
        """Wait for their ends."""
        return await asyncio.gather(*self._tasks)
