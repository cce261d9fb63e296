"""Who calls, and may they: default deny.

What a method needs stands in its `access` option. A method without one is refused to everybody, but for the health
service, which answers load balancers without credentials, and for methods that say they are public: their callers prove
themselves by what is in the request.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from tollkeeper.common.v1 import access_pb2

from controlplane.domain.errors import (
    MissingCredentialsError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from controlplane.domain.keys import is_administrator_token, sha256_of
from controlplane.domain.roles import Role, is_for_nodes, may
from controlplane.rpc.actors import NODE, Actor, enter
from controlplane.rpc.interception import Context, Surroundings
from controlplane.rpc.node_admission import Callers, NodeAdmission
from controlplane.store.administrators import Administrators
from controlplane.store.database import Store

PUBLIC_SERVICES: Final = frozenset({"grpc.health.v1.Health"})
"""Services that answer without credentials."""

PUBLIC_PERMISSION: Final = "public"
"""What a method declares that asks for no caller, because its request holds the proof."""

# 2 s: an administrator that another control plane deleted is refused here after at most this.
CACHE_LIFETIME_S: Final = 2.0
CACHE_SIZE: Final = 1_000
# Anybody may present what looks like a token: more look-ups at once would take connections to the database from all others.
LOOKUPS_AT_A_TIME: Final = 4
MIN_NODE_TOKEN_LENGTH: Final = 32

_SCHEME: Final = "bearer"


def method_descriptor(method: str) -> MethodDescriptor | None:
    """Return the descriptor of `/package.Service/Method`, or None when no proto here declares it."""
    service_name, _, name = method.lstrip("/").partition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
    except KeyError:
        return None
    found: MethodDescriptor | None = service.methods_by_name.get(name)
    return found


def permission_of(method: str) -> str:
    """Return the permission that a method declares, or nothing: then it is refused to everybody."""
    descriptor = method_descriptor(method)
    if descriptor is None:
        return ""
    return descriptor.GetOptions().Extensions[access_pb2.access].permission


@dataclass(frozen=True, slots=True)
class _Known:
    actor: Actor
    until_s: float


class Authenticator:
    """Tells callers by their bearer token: administrators by a look-up of its digest, data planes by comparison.

    A found administrator is remembered for `CACHE_LIFETIME_S`, and forgotten at every change of the configuration
    that this process commits, so that a deleted one is refused from the next call on.
    """

    def __init__(
        self,
        store: Store,
        node_token: str | None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look administrators up in `store`; `monotonic` returns seconds.

        Args:
            store: Where administrators are.
            node_token: What data planes share; None: no token is theirs.
            monotonic: Never goes back.

        Raises:
            ValueError: The node token is so short that it could be guessed.
        """
        if node_token is not None and len(node_token) < MIN_NODE_TOKEN_LENGTH:
            raise ValueError(f"a node token has at least {MIN_NODE_TOKEN_LENGTH} characters")
        self._store = store
        self._node_token = None if node_token is None else node_token.encode()
        self._monotonic = monotonic
        self._known: dict[bytes, _Known] = {}
        self._generation = 0
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_A_TIME)
        store.changed.listen(lambda _revision: self.forget())

    def forget(self) -> None:
        """Forget every administrator; the next call of each is looked up."""
        self._known.clear()
        self._generation += 1

    async def caller(self, context: Context) -> Actor:
        """Return who makes a call; see `actor_of`."""
        return await self.actor_of(_header(context))

    async def actor_of(self, authorization: str | None) -> Actor:
        """Return who presents this value of the `authorization` header.

        Raises:
            MissingCredentialsError: There is none.
            UnauthenticatedError: It is nobody's.
        """
        if not authorization:
            raise MissingCredentialsError("present a token as authorization: Bearer …")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() == _SCHEME and self._is_node_token(token):
            return NODE
        if scheme.lower() == _SCHEME and is_administrator_token(token):
            actor = await self._administrator(sha256_of(token))
            if actor is not None:
                return actor
        raise UnauthenticatedError("the token is not valid")

    def _is_node_token(self, token: str) -> bool:
        known = self._node_token
        return known is not None and hmac.compare_digest(token.encode(), known)

    async def _administrator(self, digest: bytes) -> Actor | None:
        known = self._known.get(digest)
        if known is not None and self._monotonic() < known.until_s:
            return known.actor
        generation = self._generation
        async with self._lookups, self._store.reading() as session:
            row = await Administrators(session).by_token(digest)
        if row is None:
            return None
        actor = Actor(row.name, Role(row.role))
        # A change that was committed while we read may have removed them: do not remember then.
        if generation == self._generation:
            self._remember(digest, actor)
        return actor

    def _remember(self, digest: bytes, actor: Actor) -> None:
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        self._known[digest] = _Known(actor, self._monotonic() + CACHE_LIFETIME_S)


class Authorization:
    """Lets a call through when its caller holds the permission that its method declares."""

    def __init__(
        self,
        callers: Callers,
        public_services: frozenset[str] = PUBLIC_SERVICES,
        *,
        admission: NodeAdmission | None = None,
        is_for_nodes_only: bool = False,
    ) -> None:
        """Ask `callers` who calls.

        Args:
            callers: Know who calls.
            public_services: Need no caller.
            admission: Admits calls of nodes beyond their permission, and ends them.
            is_for_nodes_only: Nothing here is public, whatever a method declares.
        """
        self._callers = callers
        self._public_services = public_services
        self._admission = admission
        self._is_for_nodes_only = is_for_nodes_only

    def gate_of(self, method: str) -> Surroundings:
        """Return the gate of one method."""
        permission = permission_of(method)
        is_public = method.lstrip("/").partition("/")[0] in self._public_services or (
            permission == PUBLIC_PERMISSION and not self._is_for_nodes_only
        )

        @asynccontextmanager
        async def gate(request: Any, context: Context) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                if not is_public:
                    actor = await self._callers.caller(context)
                    check_permission(actor, permission)
                    enter(actor)
                    if actor.role is None and self._admission is not None:
                        await stack.enter_async_context(self._admission.admitted(actor, request))
                yield

        return gate


def check_permission(actor: Actor, permission: str) -> None:
    """Check that `actor` holds `permission`; nobody holds the empty one.

    Raises:
        PermissionDeniedError: They do not.
    """
    allowed = is_for_nodes(permission) if actor.role is None else may(actor.role, permission)
    if not allowed:
        raise PermissionDeniedError(f"{actor.name} lacks {permission or 'any such permission'}")


def _header(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return value
    return None
