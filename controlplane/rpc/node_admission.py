"""Which node calls, and may it: at the beginning of each call, at everything it says of itself, and at each ban.

A node is known by its certificate where the planes speak TLS. Where they share a token it names itself in what it says;
then all that can be refused is a name. A call of a node that may not call any more is ended where it stands.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Protocol

import grpc
import structlog
from grpc import aio

from controlplane.domain.errors import PermissionDeniedError, UnauthenticatedError
from controlplane.pki.certificates import NodeName, end_of, node_name_in
from controlplane.rpc.actors import Actor
from controlplane.rpc.interception import Context, Handler
from controlplane.rpc.node_roster import NodeRoster
from controlplane.snapshots.identity import NodeIdentityClaim

_CERTIFICATE: Final = "x509_pem_cert"
_COMMON_NAME: Final = "x509_common_name"
_URIS: Final = "peer_uri"
_DNS_NAMES: Final = "peer_dns"
_ID_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)
_MAX_ID_CHARACTERS: Final = 64

_log: Final = structlog.get_logger(__name__)


class NodeProof(StrEnum):
    """How nodes prove who they are."""

    SHARED_TOKEN = "shared token"  # noqa: S105 - the name of a way, not a secret
    OWN_AUTHORITY = "own authority"
    OPERATORS_AUTHORITY = "operator's authority"


class Callers(Protocol):
    """Tell who calls."""

    async def caller(self, context: Context) -> Actor:
        """Return who makes a call.

        Raises:
            DomainError: It is nobody who may call here.
        """
        ...


class NodeCall:
    """One call of a node, while it is open. `name` is None where nodes share a token."""

    def __init__(self, name: NodeName | None) -> None:
        self.name = name
        self.node_id = name.node_id if name else ""
        self.refusal = ""
        self._ending = asyncio.timeout(None)

    def end(self, refusal: str) -> None:
        """Have the call end with this refusal; once is enough."""
        if not self.refusal:
            self.refusal = refusal
            self._ending.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def until_ended(self) -> AsyncIterator[None]:
        """Run the block until it is over, or until `end`.

        Raises:
            PermissionDeniedError: `end` was called.
        """
        try:
            async with self._ending:
                yield
        except TimeoutError:
            if not self.refusal:
                raise
            raise PermissionDeniedError(self.refusal) from None


_current: ContextVar[NodeCall | None] = ContextVar("tollkeeper_node_call", default=None)


class NodeAdmission:
    """Admits calls of nodes by the roster, and ends those that are admitted no longer."""

    def __init__(
        self,
        roster: NodeRoster,
        proof: NodeProof,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Admit nodes that `roster` knows by their `proof`; `clock` says whether certificates have ended."""
        self._roster = roster
        self._proof = proof
        self._clock = clock
        self._calls: set[NodeCall] = set()
        roster.listen(self._look_again)

    async def caller(self, context: Context) -> Actor:
        """Return the node whose certificate the peer of a call has shown.

        Raises:
            UnauthenticatedError: It is no node's certificate, or has ended.
            PermissionDeniedError: The node may not call.
            OverloadedError: Whether it may is in the database, which does not answer.
        """
        name = self._name_of(context)
        # It held when the connection was opened, which may be long ago.
        if self._has_ended(context):
            raise UnauthenticatedError(f"the certificate of {name.node_id} has ended")
        if self._refusal_of(name):
            # It may have joined, or its ban have been lifted, at another control plane a moment ago.
            await self._roster.refresh()
        refusal = self._refusal_of(name)
        if refusal:
            _log.warning("node refused", node_id=name.node_id, reason=refusal)
            raise PermissionDeniedError(refusal)
        return Actor(f"node:{name.node_id}", node=name)

    @asynccontextmanager
    async def admitted(self, actor: Actor, request: Any) -> AsyncIterator[None]:
        """Run one call of a node; ends it when the node is banned. `request` is None when requests are a stream.

        Raises:
            PermissionDeniedError: The node may not call, or speaks for another.
        """
        call = NodeCall(actor.node)
        self._calls.add(call)
        # Never reset: the context is that of this call's task, which ends with it.
        _current.set(call)
        try:
            async with call.until_ended():
                self.check_said(call, request)
                yield
        finally:
            self._calls.discard(call)

    def check_said(self, call: NodeCall, message: Any) -> None:
        """Check the node that a message names, if it names one.

        Raises:
            PermissionDeniedError: It is another than calls, or is banned.
        """
        named = _named_node(message)
        if not named:
            return
        if call.name is not None and named != call.name.node_id:
            raise PermissionDeniedError(
                f"{call.name.node_id} cannot speak for {named[:_MAX_ID_CHARACTERS]}"
            )
        call.node_id = named
        if self._is_banned(named):
            raise PermissionDeniedError(_banned(named))

    def identify(self, _context: Context) -> NodeIdentityClaim:
        """Return what the node of the call that runs in this task is, and what it may see.

        Raises:
            PermissionDeniedError: It may not call any more: its scope is not known, and must not pass for everything.
        """
        call = _current.get()
        if call is None or call.name is None:
            return NodeIdentityClaim()
        refusal = self._refusal_of(call.name)
        if refusal:
            raise PermissionDeniedError(refusal)
        known = self._roster.get(call.name.node_id)
        scope = known.organization_ids if known else frozenset[str]()
        return NodeIdentityClaim(call.name.node_id, scope)

    def _name_of(self, context: Context) -> NodeName:
        shown = context.auth_context()
        if self._proof is NodeProof.OWN_AUTHORITY:
            name = node_name_in(_texts(shown, _URIS))
            if name is not None:
                return name
        else:
            for text in (*_texts(shown, _COMMON_NAME), *_texts(shown, _DNS_NAMES)):
                if _is_node_id(text):
                    return NodeName(text, 0)
        raise UnauthenticatedError("the certificate is not one of a node")

    def _has_ended(self, context: Context) -> bool:
        for certificate in context.auth_context().get(_CERTIFICATE, ()):
            return end_of(certificate) <= self._clock()
        return True

    def _refusal_of(self, name: NodeName) -> str:
        """Return why a node may not call; nothing when it may."""
        known = self._roster.get(name.node_id)
        if known is not None and known.is_banned:
            return _banned(name.node_id)
        if self._proof is not NodeProof.OWN_AUTHORITY:
            return ""
        if known is None or known.enrolled_at_ms != name.enrolled_at_ms:
            return (
                f"node {name.node_id} must join again: its certificate is not of its last joining"
            )
        return ""

    def _is_banned(self, node_id: str) -> bool:
        known = self._roster.get(node_id)
        return known is not None and known.is_banned

    def _look_again(self, changed: frozenset[str]) -> None:
        """End the calls of nodes that may not call any more."""
        for call in tuple(self._calls):
            if call.node_id not in changed:
                continue
            banned = _banned(call.node_id) if self._is_banned(call.node_id) else ""
            refusal = self._refusal_of(call.name) if call.name else banned
            if refusal:
                _log.warning("call of a node ended", node_id=call.node_id, reason=refusal)
                call.end(refusal)


class SaidByNodes(aio.ServerInterceptor):
    """Checks each message of a node's stream for the node that it names, before the servicer sees it."""

    def __init__(self, admission: NodeAdmission) -> None:
        self._admission = admission

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap handlers of streams in both directions: no other is given a stream of requests by nodes."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.stream_stream is None:
            return handler
        # Any: gRPC's types know handlers of its other, synchronous server only.
        inner: Any = handler.stream_stream
        admission = self._admission

        async def checked(requests: Any, context: Context) -> AsyncIterator[Any]:
            call = _current.get()
            said = requests if call is None else _Said(requests, admission, call)
            async with aclosing(inner(said, context)) as answers:
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(
            checked,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Said:
    """Requests of a node, each checked when it is read. No generator: a reader may give up and read again."""

    def __init__(self, requests: AsyncIterator[Any], admission: NodeAdmission, call: NodeCall):
        self._requests = requests
        self._admission = admission
        self._call = call

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        self._admission.check_said(self._call, message)
        return message


def _named_node(message: Any) -> str:  # Any: any message of a node, or none
    """Return the node that a message says it is from; Hello says so one level deeper."""
    if message is None:
        return ""
    hello = getattr(message, "hello", None)
    found = getattr(message if hello is None else hello, "node_id", "")
    return found if isinstance(found, str) else ""


def _banned(node_id: str) -> str:
    return f"node {node_id} is banned"


def _is_node_id(text: str) -> bool:
    return 0 < len(text) <= _MAX_ID_CHARACTERS and _ID_CHARACTERS.issuperset(text)


def _texts(shown: Mapping[str, Iterable[bytes]], what: str) -> Iterator[str]:
    for value in shown.get(what, ()):
        yield value.decode(errors="replace")
