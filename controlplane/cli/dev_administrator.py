"""The administrator that `tollkeeper dev` is while it starts: calls of the admin API, each with its deadline."""

from typing import Final, TypeVar

import grpc

# A commit takes milliseconds; a machine that swaps may need seconds.
_RPC_DEADLINE_S: Final = 10.0

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class Administrator:
    """Who asks, over which channel. A refused call raises what gRPC raises."""

    def __init__(self, channel: grpc.aio.Channel, admin_token: str) -> None:
        self.channel = channel
        self._metadata = (("authorization", f"Bearer {admin_token}"),)

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer], request: _Request
    ) -> _Answer:
        """Return the answer to a request."""
        return await method(request, timeout=_RPC_DEADLINE_S, metadata=self._metadata)

    async def create(
        self, method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer], request: _Request
    ) -> _Answer | None:
        """Return what was created, or None if one of that name exists."""
        return await self._unless(grpc.StatusCode.ALREADY_EXISTS, method, request)

    async def find(
        self, method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer], request: _Request
    ) -> _Answer | None:
        """Return what was asked for, or None if there is no such thing."""
        return await self._unless(grpc.StatusCode.NOT_FOUND, method, request)

    async def _unless(
        self,
        expected: grpc.StatusCode,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer],
        request: _Request,
    ) -> _Answer | None:
        try:
            return await self.ask(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not expected:
                raise
            return None
