"""`enrollment.v1.NodeEnrollmentService`: certificates for nodes, the first one for a join token."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as pb_grpc

from controlplane.domain.errors import (
    AlreadyExistsError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from controlplane.domain.keys import sha256_of
from controlplane.pki.certificates import NODE_LIFETIME, Authority, Issued, NodeName
from controlplane.rpc.actors import current_actor
from controlplane.rpc.interception import Context
from controlplane.rpc.node_admission import NodeProof
from controlplane.rpc.node_roster import NodeRoster
from controlplane.rpc.redaction import audited
from controlplane.rpc.resources import to_timestamp
from controlplane.store.database import Store
from controlplane.store.fleet_tables import JoinToken
from controlplane.store.join_tokens import REPETITION, JoinTokens
from controlplane.store.nodes import Nodes
from controlplane.store.tables import NodeIdentity
from controlplane.store.transactions import Transaction

# Anybody may ask: more at once would only hold connections to the database.
MAX_AT_A_TIME: Final = 4
TURN_WAIT_S: Final = 5.0
# A fleet that starts at once; a flood is refused without having to wait, so that the turn of a node comes.
MAX_WAITING: Final = 100

_NOT_BY_TOKEN: Final = {
    NodeProof.SHARED_TOKEN: "nodes of this control plane share one token, TOLLKEEPER_JOIN_TOKEN;"
    " they join one by one with TOLLKEEPER_TLS=own",
    NodeProof.OPERATORS_AUTHORITY: "nodes of this control plane have certificates of the operator",
}

_TOO_MANY: Final = "too many nodes join at once; try again later"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Joining:
    """How nodes become nodes here.

    `authority` signs their certificates, which hold for `lifetime`; None where they do not join by token. `roster` is what
    calls of nodes are checked against; None where this process serves none.
    """

    proof: NodeProof
    authority: Authority | None = None
    lifetime: timedelta = NODE_LIFETIME
    roster: NodeRoster | None = None

    async def look_again(self) -> None:
        """Have what was just committed checked against from now on, at this control plane; others follow in a moment."""
        if self.roster is None:
            return
        # The change is made, whatever becomes of this; the roster reads the database again by itself.
        with contextlib.suppress(OverloadedError):
            await self.roster.refresh()

    def signing(self) -> Authority:
        """Return the authority.

        Raises:
            PreconditionError: Nodes do not join by token here.
        """
        if self.authority is None:
            raise PreconditionError(_NOT_BY_TOKEN[self.proof])
        return self.authority


class NodeEnrollmentServicer(pb_grpc.NodeEnrollmentServiceServicer):
    """Serves both methods; which port offers which is decided by who may call there."""

    def __init__(self, store: Store, joining: Joining) -> None:
        self._store = store
        self._joining = joining
        self._turns = asyncio.Semaphore(MAX_AT_A_TIME)
        self._waiting = 0

    async def EnrollNode(
        self, request: pb.EnrollNodeRequest, _context: Context
    ) -> pb.EnrollNodeResponse:
        """Exchange a join token for a certificate; the same request again gets the same answer for 10 minutes."""
        self._joining.signing()
        digest = sha256_of(request.token_secret)
        async with self._turn():
            # Read first: an unknown secret, which anybody can make up, takes no writer's turn.
            async with self._store.reading() as session:
                _known(await JoinTokens(session).by_secret(digest))
            actor = f"node:{request.node_id}"
            async with self._store.transaction(actor, "EnrollNode") as tx:
                tx.describe(request.node_id, audited(request))
                tx.after_commit(self._joining.look_again)
                token = _known(await JoinTokens(tx.session).by_secret(digest))
                response = await self._enrolled(tx, token, request)
        _log.info("node enrolled", node_id=request.node_id, token_id=token.id)
        return response

    async def RenewNode(
        self, request: pb.RenewNodeRequest, _context: Context
    ) -> pb.RenewNodeResponse:
        """Give the node that calls another certificate, of the same joining."""
        authority, name = self._joining.signing(), current_actor().node
        if name is None:
            raise PreconditionError("only a node that has a certificate can renew it")
        issued = authority.node_certificate(
            request.certificate_request, name, self._store.clock(), self._joining.lifetime
        )
        async with self._store.ledger() as session:
            nodes = Nodes(session)
            row = await nodes.find(name.node_id)
            if row is None or row.banned_at is not None:
                raise PermissionDeniedError(f"node {name.node_id} may not renew its certificate")
            await nodes.keep_certificate(name.node_id, issued.serial, issued.expires_at)
        _log.info("certificate renewed", node_id=name.node_id, expires_at=issued.expires_at)
        return pb.RenewNodeResponse(
            certificate_chain=issued.chain_pem.decode(),
            authority=authority.certificate_pem.decode(),
            expires_at=to_timestamp(issued.expires_at),
        )

    async def _enrolled(
        self, tx: Transaction, token: JoinToken, request: pb.EnrollNodeRequest
    ) -> pb.EnrollNodeResponse:
        digest = _digest_of(request)
        # Before anything else is said: a token that is used up tells its finder nothing.
        is_repeated = _is_repeated(token, digest, tx.now)
        if token.node_id not in ("", request.node_id):
            raise PermissionDeniedError("this join token is for another node")
        tokens, nodes = JoinTokens(tx.session), Nodes(tx.session)
        row = await nodes.find_for_change(request.node_id)
        if row is not None and row.banned_at is not None:
            raise PermissionDeniedError(f"node {request.node_id} is banned")
        if is_repeated:
            return pb.EnrollNodeResponse.FromString(token.answer)
        if row is not None and not token.node_id:
            raise AlreadyExistsError(
                f"another node has the id {request.node_id}; to let it join again, make a token for this id",
                field="node_id",
            )
        # Milliseconds: what the certificate says of its joining is compared with the row.
        enrolled_at = _whole_milliseconds(tx.now)
        issued = self._issued(request, enrolled_at, tx.now)
        if not await tokens.use(token.id, tx.now, request_sha256=digest):
            raise UnauthenticatedError("the join token is not valid")
        _joined(tx, row, request.node_id, token, enrolled_at)
        await nodes.keep_certificate(request.node_id, issued.serial, issued.expires_at)
        response = pb.EnrollNodeResponse(
            certificate_chain=issued.chain_pem.decode(),
            authority=self._joining.signing().certificate_pem.decode(),
            expires_at=to_timestamp(issued.expires_at),
        )
        await tokens.keep_answer(token.id, response.SerializeToString())
        return response

    def _issued(
        self, request: pb.EnrollNodeRequest, enrolled_at: datetime, now: datetime
    ) -> Issued:
        name = NodeName(request.node_id, round(enrolled_at.timestamp() * 1000))
        return self._joining.signing().node_certificate(
            request.certificate_request, name, now, self._joining.lifetime
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            OverloadedError: It did not come in time, or too many wait already.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError(_TOO_MANY)
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_WAIT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise OverloadedError(_TOO_MANY) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


def _known(token: JoinToken | None) -> JoinToken:
    if token is None:
        raise UnauthenticatedError("the join token is not valid")
    return token


def _is_repeated(token: JoinToken, request_sha256: bytes, now: datetime) -> bool:
    """Say whether this request used the token a moment ago.

    Raises:
        UnauthenticatedError: Another did, or it was longer ago, or the token has expired unused.
    """
    if token.used_at is None:
        if token.expires_at <= now:
            raise UnauthenticatedError("the join token is not valid")
        return False
    if token.request_sha256 != request_sha256 or token.used_at + REPETITION <= now:
        raise UnauthenticatedError("the join token is not valid")
    return True


def _joined(
    tx: Transaction,
    row: NodeIdentity | None,
    node_id: str,
    token: JoinToken,
    enrolled_at: datetime,
) -> None:
    if row is None:
        row = NodeIdentity(id=node_id, created_at=tx.now, updated_at=tx.now)
        tx.add(row)
    row.organization_ids = list(token.organization_ids)
    row.enrolled_at = enrolled_at


def _whole_milliseconds(instant: datetime) -> datetime:
    return instant - timedelta(microseconds=instant.microsecond % 1000)


def _digest_of(request: pb.EnrollNodeRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
