"""Work around every call, whatever its kind: one context manager per call, entered in the call's own task."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc import aio

# 65 s: the longest wait of an administrator (60 s for work on the counters), and room for the database.
UNARY_DEADLINE_S: Final = 65.0

# Any: requests and answers of every method pass here.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = aio.ServicerContext[Any, Any]
Surroundings = Callable[[Any, Context], AbstractAsyncContextManager[None]]
"""Makes what surrounds one call from its request (None when requests are a stream) and its context."""


class SurroundingInterceptor(aio.ServerInterceptor):
    """An interceptor that runs a context manager around each call.

    Raising on the way in keeps the servicer from running. The order of interceptors is that of nested blocks.
    """

    def __init__(self, surround: Callable[[str], Surroundings]) -> None:
        """Wrap calls of each method in what `surround` returns for it; methods are `/package.Service/Method`."""
        self._surround = surround

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the method's handler; a method that nobody serves stays unserved."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return _wrapped(handler, self._surround(handler_call_details.method))


def deadline(_method: str) -> Surroundings:
    """Return what ends one method's calls after `UNARY_DEADLINE_S` with TimeoutError; streams last as they like."""

    @asynccontextmanager
    async def bounded(request: Any, _context: Context) -> AsyncIterator[None]:
        async with asyncio.timeout(UNARY_DEADLINE_S if isinstance(request, Message) else None):
            yield

    return bounded


def _wrapped(handler: Handler, surroundings: Surroundings) -> Handler:
    coders = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        streaming = _streaming(inner, surroundings, request_streaming=handler.request_streaming)
        return make(streaming, **coders)
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
    unary = _unary(inner, surroundings, request_streaming=handler.request_streaming)
    return make_unary(unary, **coders)


def _unary(inner: Any, surroundings: Surroundings, *, request_streaming: bool) -> Any:
    async def call(request: Any, context: Context) -> Any:
        async with surroundings(None if request_streaming else request, context):
            return await inner(request, context)

    return call


def _streaming(inner: Any, surroundings: Surroundings, *, request_streaming: bool) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async with (
            surroundings(None if request_streaming else request, context),
            aclosing(inner(request, context)) as answers,
        ):
            async for answer in answers:
                yield answer

    return call
