"""One try at a provider: send the request, wait for the head of the answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import lru_cache
from typing import Final, cast

import httpx

from dataplane.domain.calls import Call, Dialect
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.routing import Attempt
from dataplane.upstream.answers import Translator
from dataplane.upstream.translators.anthropic_anthropic import AnthropicToAnthropic
from dataplane.upstream.translators.openai_openai import OpenAIToOpenAI

# The largest whole answer that is read into memory: pictures as base64 are the largest known.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
# An error is a few hundred bytes; what is longer is somebody's web page.
MAX_ERROR_BYTES: Final = 64 * 1024
_TRANSLATORS: Final[Mapping[Dialect, Translator]] = {
    Dialect.OPENAI: OpenAIToOpenAI(),
    Dialect.ANTHROPIC: AnthropicToAnthropic(),
}


class NotSentError(Exception):
    """Nothing of the request was written upstream. `refusal` is what the caller is told."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason.value)
        self.refusal = refusal


class UpstreamAnswer:
    """A provider's answer whose head is here. Close it: before its end that cancels the call."""

    __slots__ = ("_response", "chunks", "content_type", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = response.headers
        content_type: str = response.headers.get("content-type", "")
        self.content_type = content_type if content_type.isascii() else ""
        self.chunks: AsyncIterator[bytes] = cast(
            "httpx.AsyncByteStream", response.stream
        ).__aiter__()

    @property
    def is_event_stream(self) -> bool:
        """Return whether the body is server-sent events."""
        return self.content_type.startswith("text/event-stream")

    async def body(self, limit_bytes: int) -> bytes:
        """Return the whole body, or as much of it as `limit_bytes`.

        Raises:
            httpx.ReadTimeout, httpx.ReadError: It was cut.
        """
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= limit_bytes:
                break
        return b"".join(parts) if len(parts) != 1 else parts[0]

    async def hang_up(self) -> None:
        """End the call, from whichever task; whoever reads gets `httpx.ReadError`."""
        await cast("httpx.AsyncByteStream", self._response.stream).aclose()

    async def aclose(self) -> None:
        """Give the connection back, or cancel the call; for the task that reads, when it is done.

        Never waits for the provider.
        """
        if isinstance(self.chunks, AsyncGenerator):
            await self.chunks.aclose()
        await self.hang_up()


class Upstreams:
    """Sends calls to providers."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    def translator_for(self, dialect: Dialect) -> Translator:
        """Return what stands between a caller and a provider that both speak `dialect`."""
        return _TRANSLATORS[dialect]

    async def send(
        self, attempt: Attempt, call: Call, output_cap_tokens: int | None
    ) -> UpstreamAnswer:
        """Send `call` and return the answer's head.

        Cancelling it closes the connection to the provider.

        Raises:
            NotSentError: The provider cannot have read the request.
            Refusal: It may have: UPSTREAM_TIMEOUT or UPSTREAM_ERROR.
        """
        request = _request(attempt, call, output_cap_tokens)
        try:
            async with asyncio.timeout(call.timeout_seconds):
                response = await self._transport.handle_async_request(request)
        except httpx.ConnectError as error:
            refusal = Refusal(Reason.UPSTREAM_ERROR, "The provider cannot be reached.")
            raise NotSentError(refusal) from error
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            refusal = Refusal(Reason.UPSTREAM_TIMEOUT, "The provider cannot be reached in time.")
            raise NotSentError(refusal) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Refusal(
                Reason.UPSTREAM_TIMEOUT, "The provider did not answer in time."
            ) from error
        except httpx.TransportError as error:
            raise Refusal(Reason.UPSTREAM_ERROR, "The provider hung up.") from error
        return UpstreamAnswer(response)

    async def aclose(self) -> None:
        """Close every connection to providers."""
        await self._transport.aclose()


def _request(attempt: Attempt, call: Call, output_cap_tokens: int | None) -> httpx.Request:
    translator = _TRANSLATORS[call.dialect]
    try:
        return httpx.Request(
            "POST",
            _url(attempt.base_url + translator.path),
            headers=translator.headers(call, attempt),
            content=translator.body(call, attempt, output_cap_tokens),
        )
    except Refusal as too_deep:
        raise NotSentError(too_deep) from too_deep
    except httpx.InvalidURL as error:
        refusal = Refusal(Reason.UPSTREAM_ERROR, "The provider's address is not valid.")
        raise NotSentError(refusal) from error
    except UnicodeError as error:
        refusal = Refusal(Reason.UPSTREAM_AUTH, "The gateway's credential is not valid.")
        raise NotSentError(refusal) from error


@lru_cache(maxsize=1_024)
def _url(text: str) -> httpx.URL:
    """Return an endpoint's URL, parsed once: parsing costs more than sending."""
    return httpx.URL(text)
