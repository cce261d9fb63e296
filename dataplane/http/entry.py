"""The way in for the paths that are hot: the same handlers as Quart's, without its dispatch.

Quart serves every path; the calls that buy tokens enter ahead of it, because its dispatch costs
as much as everything that the gateway itself does (`docs/benchmarks.md`). A conformance test
runs each case through both.
"""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

import structlog

from dataplane.domain import registration
from dataplane.domain.calls import Dialect
from dataplane.domain.refusals import Reason, Refusal
from dataplane.http.completions import APIS, CompletionApi, completion
from dataplane.http.devices import register_device
from dataplane.http.errors import refused
from dataplane.http.exchange import HttpAnswer, HttpRequest
from dataplane.http.front import Front
from dataplane.http.reading import (
    MAX_BODY_BYTES,
    ClientLeftError,
    Receive,
    Scope,
    Send,
    dialect_of,
    headers_of,
    read_request,
)
from dataplane.pipeline import Pipeline

_log = structlog.get_logger(__name__)
# A client that takes nothing for so long is gone; its slot and its money go back.
STALLED_SECONDS: Final = 120.0
# How much later than the request the gateway begins to listen for its client's leaving.
LISTEN_AFTER_SECONDS: Final = 0.03
# A body that trickles in holds memory for so long at most.
READ_SECONDS: Final = 60.0
REGISTER_PATH: Final = "/v1/devices/register"


class AsgiApp(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""


class Entry:
    """Serves the hot paths itself and hands everything else on."""

    def __init__(self, front: Front, everything_else: AsgiApp) -> None:
        self._front = front
        self._pipeline = front.pipeline
        self._addresses = front.addresses
        self._everything_else = everything_else
        self._apis = {api.path: api for api in APIS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http" and scope["method"] == "POST":
            api = self._apis.get(scope["path"])
            if api is not None:
                await self._complete(api, scope, receive, send)
                return
            if scope["path"] == REGISTER_PATH:
                await self._register(scope, receive, send)
                return
        await self._everything_else(scope, receive, send)

    async def _complete(
        self, api: CompletionApi, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request = await self._read(scope, receive, send, api.dialect, MAX_BODY_BYTES)
        if request is None:
            return
        watch = DisconnectWatch(receive)
        try:
            async with completion(self._front, api, request) as answer:
                await send_answer(answer, send)
        except asyncio.CancelledError:
            if not watch.has_left:
                raise
        except Exception:
            # The outermost edge: the caller gets a code, the log the trace.
            _log.exception("request_failed", path=api.path)
            await _send_internal_error(self._pipeline, scope, send)
        finally:
            watch.stop()

    async def _register(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a registration: whoever floods it must not slow the others down."""
        size = registration.MAX_BODY_BYTES
        request = await self._read(scope, receive, send, Dialect.OPENAI, size)
        if request is None:
            return
        try:
            await send_answer(await register_device(self._front.devices, request), send)
        except Exception:
            # The outermost edge: the caller gets a code, the log the trace.
            _log.exception("request_failed", path=REGISTER_PATH)
            await _send_internal_error(self._pipeline, scope, send)

    async def _read(
        self, scope: Scope, receive: Receive, send: Send, dialect: Dialect, max_body_bytes: int
    ) -> HttpRequest | None:
        """Return the request, read to its end; None when it is refused already, or was cut."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await read_request(scope, receive, self._addresses, max_body_bytes)
        except ClientLeftError:
            return None
        except TimeoutError:
            refusal = Refusal(Reason.INVALID_REQUEST, "The body did not arrive in time.")
        except Refusal as given:
            refusal = given
        # The rest of it is not read, so that its connection must close.
        request_id = self._pipeline.new_request_id()
        await send_answer(refused(refusal, dialect, request_id), send, closes=True)
        return None


class DisconnectWatch:
    """Cancels the task that made it when the client leaves.

    It begins to listen a moment later: most answers are over by then, and a task for each costs as
    much as all of admission.
    """

    __slots__ = ("_listener", "_receive", "_timer", "_work", "has_left")

    def __init__(self, receive: Receive, after_seconds: float = LISTEN_AFTER_SECONDS) -> None:
        self.has_left = False
        self._receive = receive
        self._work = asyncio.current_task()
        self._listener: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(after_seconds, self._listen)

    def stop(self) -> None:
        """Listen no more; an answer that was cut by the client counts as ended."""
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self.has_left and self._work is not None:
            self._work.uncancel()

    def _listen(self) -> None:
        self._listener = asyncio.create_task(self._until_disconnect())

    async def _until_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._work is not None:
            self.has_left = True
            self._work.cancel()


async def send_answer(answer: HttpAnswer, send: Send, *, closes: bool = False) -> None:
    """Send one answer; a stream goes out event by event, at the client's pace.

    Raises:
        TimeoutError: The client took nothing for two minutes.
    """
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if closes:
        headers.append((b"connection", b"close"))
    if answer.stream is None:
        headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})
        return
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for chunk in answer.stream:
        async with asyncio.timeout(STALLED_SECONDS):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_internal_error(pipeline: Pipeline, scope: Scope, send: Send) -> None:
    refusal = Refusal(Reason.INTERNAL, "The gateway failed; the request id finds it in the log.")
    dialect = dialect_of(scope["path"], headers_of(scope["headers"]))
    # An answer that has begun cannot become another one: the server then cuts the connection.
    with suppress(Exception):
        await send_answer(refused(refusal, dialect, pipeline.new_request_id()), send, closes=True)
