"""A provider with a script: it keeps what it was sent and answers what it is told."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

Script = Callable[["Conversation"], Awaitable[None]]
USAGE = b'{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}'
ANSWER = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":%b}' % USAGE


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


class Conversation:
    """One request and the means to answer it; one that is not answered whole ends its connection."""

    def __init__(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.request = request
        self.peer = writer.get_extra_info("peername")
        self.is_over = False
        self._reader = reader
        self._writer = writer

    async def answer(
        self, status: int, body: bytes, *headers: str, content_type: str = "application/json"
    ) -> None:
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status != 529 else 'Overloaded'}",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            *headers,
        ]
        await self._write("\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body)
        self.is_over = len([line for line in lines if line.startswith("content-length")]) == 1

    async def begin_stream(self) -> None:
        await self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def event(self, data: bytes) -> None:
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self._write(b"0\r\n\r\n")
        self.is_over = True

    async def until_left(self) -> None:
        """Wait until the other side has closed the connection."""
        await self._reader.read()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class ScriptedProvider:
    """A server on a port of its own; use it as an asynchronous context."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.left = 0
        self.script: Script = _answers
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answers(self, status: int, body: bytes, *headers: str, content_type: str = "") -> None:
        """Answer every call the same way."""

        async def script(conversation: Conversation) -> None:
            kind = content_type or "application/json"
            await conversation.answer(status, body, *headers, content_type=kind)

        self.script = script

    def streams(self, *events: bytes, then: str = "end") -> None:
        """Answer every call with these runs of bytes; `then` is `end`, `cut` or `wait`."""

        async def script(conversation: Conversation) -> None:
            await conversation.begin_stream()
            for event in events:
                await conversation.event(event)
            if then == "end":
                await conversation.end_stream()
            elif then == "wait":
                await conversation.until_left()
                self.left += 1

        self.script = script

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            is_open = True
            while is_open and (request := await _read(reader)) is not None:
                self.received.append(request)
                conversation = Conversation(request, reader, writer)
                await self.script(conversation)
                is_open = conversation.is_over
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            self._tasks.discard(task)


async def _answers(conversation: Conversation) -> None:
    await conversation.answer(200, ANSWER)


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(line, headers, body)
