"""One connection of the mock provider, from bytes to bytes."""

import asyncio
from typing import Final, cast

from dataplane.mock.exchange import Exchange
from dataplane.mock.protocol import CONTINUE, MalformedRequestError, Request, RequestParser
from dataplane.mock.provider import Provider

# A client may send its next requests early. Reading is not paused for one that sends too many,
# because a paused transport does not see that its peer left; the connection is dropped instead.
MAX_EARLY_BYTES: Final = 1024 * 1024


class Connection(asyncio.Protocol):
    """Answers the requests of one client, one after the other, in their order.

    A connection is never closed for being idle: a benchmark must not meet the race of a keep-alive
    that ends just as the next request is under way.
    """

    def __init__(self, provider: Provider, connections: set["Connection"]) -> None:
        """Create a connection that stands in `connections` as long as it is open."""
        self._provider = provider
        self._connections = connections
        self._parser = RequestParser()
        self._exchange: Exchange | None = None
        self._is_paused = False
        self._is_serving = False
        self._closes_after_exchange = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connected client."""
        # A stream server makes its protocols with such a transport, whatever the signature says.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Answer every request that `data` completes, unless an answer is still under way."""
        self._parser.feed(data)
        if self._exchange is None and not self._is_paused:
            self._serve()
        elif self._parser.pending_bytes > MAX_EARLY_BYTES:
            self._transport.abort()

    def eof_received(self) -> None:
        """Take the end of a client's bytes as its leaving, as providers do."""
        if self._exchange is not None:
            self._leave()
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the answer under way; a stream counts as cancelled."""
        self._connections.discard(self)
        self._leave()

    def pause_writing(self) -> None:
        """Stop sending until the client has read."""
        self._is_paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """Go on sending."""
        self._is_paused = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._serve()

    def abort(self) -> None:
        """Drop the connection with whatever is under way."""
        self._transport.abort()

    def _serve(self) -> None:
        """Answer complete requests until one takes time or no more are there."""
        self._is_serving = True
        while self._exchange is None and not self._is_paused:
            request = self._next_request()
            if request is None:
                break
            self._answer(request)
        self._is_serving = False

    def _next_request(self) -> Request | None:
        """Return the next complete request of a connection that still takes any."""
        if self._transport.is_closing():
            return None
        try:
            request = self._parser.next_request()
        except MalformedRequestError as error:
            self._transport.write(self._provider.malformed(self._parser.path, error))
            self._transport.close()
            return None
        if request is None and self._parser.takes_continue():
            self._transport.write(CONTINUE)
        return request

    def _answer(self, request: Request) -> None:
        stats = self._provider.stats
        reply = self._provider.answer(request)
        if isinstance(reply, bytes):
            self._transport.write(reply)
            if not request.keeps_alive:
                self._transport.close()
            return
        self._closes_after_exchange = not request.keeps_alive
        exchange = Exchange(self._transport, reply, stats, self._exchange_ended)
        # Known before it starts, because the first write may already fill the transport.
        self._exchange = exchange
        exchange.start()

    def _exchange_ended(self) -> None:
        self._exchange = None
        if self._closes_after_exchange:
            self._transport.close()
        if not self._is_serving:
            self._serve()

    def _leave(self) -> None:
        if self._exchange is not None:
            self._exchange.leave()
            self._exchange = None
