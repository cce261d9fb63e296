"""The transport below httpx's interface: aiohttp's connection pool.

httpx's own pool costs over a millisecond a call and grows with the number of connections
(`docs/benchmarks.md`). The mapping of errors is ours because one question decides about money:
can the provider have read the request? Only `httpx.ConnectError`, `httpx.ConnectTimeout` and
`httpx.PoolTimeout` mean that it cannot.
"""

import io
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import httpx
from aiohttp import hdrs
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from dataplane.upstream.addresses import AddressForbiddenError, AllowedAddresses, CheckingResolver

CONNECT_TIMEOUT_SECONDS: Final = 5.0
# Longer than any model was seen to think between two bytes.
READ_TIMEOUT_SECONDS: Final = 300.0
# Providers close idle connections after 60 s and more; ours go first, so that none is met half-closed.
KEEP_ALIVE_SECONDS: Final = 30.0
MAX_CONNECTIONS: Final = 2_000
# Large enough for a run of events, small enough that a slow caller stops the provider soon.
_READ_BUFFER_BYTES: Final = 256 * 1024
# Larger bodies are written piece by piece, so that one of them does not hold up the others.
_LARGE_BODY_BYTES: Final = 256 * 1024
_NO_AUTO_HEADERS: Final = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class AnswerStream(httpx.AsyncByteStream):
    """The body of an answer as it arrives. Closing it before its end cancels the call."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except TimeoutError as error:
            raise httpx.ReadTimeout("the provider fell silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx.ReadError("the answer was cut") from error

    async def aclose(self) -> None:
        """Give the connection back, or close it when the answer is not at its end."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends `httpx.Request`s over aiohttp; redirects, cookies and proxies are off."""

    def __init__(self, allowed: AllowedAddresses) -> None:
        self._allowed = allowed
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                resolver=CheckingResolver(ThreadedResolver(), allowed),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NO_AUTO_HEADERS,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=CONNECT_TIMEOUT_SECONDS,
                sock_connect=CONNECT_TIMEOUT_SECONDS,
                sock_read=READ_TIMEOUT_SECONDS,
            ),
            read_bufsize=_READ_BUFFER_BYTES,
            trust_env=False,
        )
        # One per endpoint of a provider; a configuration has few.
        self._urls: dict[str, URL] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return as soon as the answer's head is there.

        Raises:
            httpx.ConnectError, httpx.ConnectTimeout: Nothing of the request was written.
            httpx.ReadTimeout, httpx.ReadError: It may have been read by the provider.
        """
        text = str(request.url)
        url = self._urls.get(text)
        if url is None:
            url = self._new_url(text)
        try:
            response = await self._session.request(
                request.method,
                url,
                headers=request.headers.multi_items(),
                data=_payload(request.content),
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, AddressForbiddenError) as error:
            raise httpx.ConnectError("the provider cannot be reached") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx.ConnectTimeout("the provider cannot be reached in time") from error
        except TimeoutError as error:
            raise httpx.ReadTimeout("the provider did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx.ReadError("the provider hung up") from error
        return httpx.Response(
            response.status,
            headers=list(response.raw_headers),
            stream=AnswerStream(response),
        )

    def _new_url(self, text: str) -> URL:
        try:
            url = URL(text, encoded=True)
            self._allowed.check_host(url.host or "")
        except (ValueError, AddressForbiddenError) as error:
            raise httpx.ConnectError("the provider's address is not allowed") from error
        if len(self._urls) >= MAX_CONNECTIONS:
            self._urls.clear()
        self._urls[text] = url
        return url

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


def _payload(content: bytes) -> bytes | io.BytesIO:
    return content if len(content) <= _LARGE_BODY_BYTES else io.BytesIO(content)
