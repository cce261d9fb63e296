"""Join tokens, for administrators: made and shown once, listed, deleted."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from tollkeeper.admin.v1 import node_service_pb2 as pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as pb_grpc

from controlplane.domain import join_tokens as texts
from controlplane.domain.errors import InvalidError, NotFoundError, PreconditionError
from controlplane.domain.keys import sha256_of
from controlplane.domain.names import new_id
from controlplane.rpc.actors import current_actor
from controlplane.rpc.changing import AdminServicer, Backend
from controlplane.rpc.interception import Context
from controlplane.rpc.node_enrollment import Joining
from controlplane.rpc.redaction import audited
from controlplane.rpc.resources import to_timestamp
from controlplane.store.audit import note_act
from controlplane.store.fleet_tables import JoinToken
from controlplane.store.join_tokens import MAX_TOKENS, JoinTokens
from controlplane.store.repositories import Repositories

DEFAULT_LIFETIME: Final = timedelta(hours=1)
_MAX_PORT: Final = 65_535


class JoinTokenMethods(AdminServicer, pb_grpc.NodeServiceServicer):
    """The methods of NodeService that are about join tokens.

    A token is no configuration: nothing of it travels, and making one takes no revision. The audit log has it all the same.
    """

    def __init__(self, backend: Backend, joining: Joining) -> None:
        super().__init__(backend)
        self._joining = joining

    @property
    def joining(self) -> Joining:
        """How nodes become nodes here."""
        return self._joining

    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, _context: Context
    ) -> pb.CreateJoinTokenResponse:
        """Make a token and show it, this once."""
        authority = self._joining.signing()
        for address in request.addresses:
            _check_address(address)
        lifetime = (
            request.lifetime.ToTimedelta() if request.HasField("lifetime") else DEFAULT_LIFETIME
        )
        secret = texts.secret_text(self.backend.random_bytes(texts.SECRET_BYTES))
        async with self.backend.store.transaction(current_actor().name, "CreateJoinToken") as tx:
            token_id = new_id(self.backend.random_below)
            await note_act(tx, f"join token {token_id}", audited(request))
            tokens = JoinTokens(tx.session)
            if len(await tokens.open(tx.now)) >= MAX_TOKENS:
                raise PreconditionError(f"there are {MAX_TOKENS} unused join tokens: delete some")
            token = JoinToken(
                id=token_id,
                secret_sha256=sha256_of(secret),
                node_id=request.node_id,
                organization_ids=[
                    (await tx.organizations.get(name, field="organizations")).id
                    for name in request.organizations
                ],
                created_at=tx.now,
                expires_at=tx.now + lifetime,
            )
            await tokens.add(token)
        text = texts.join_token(
            secret, authority.certificate_der, list(request.addresses), request.node_id
        )
        return pb.CreateJoinTokenResponse(
            join_token=text, token=_token_to_proto(token, list(request.organizations))
        )

    async def ListJoinTokens(
        self, _request: pb.ListJoinTokensRequest, _context: Context
    ) -> pb.ListJoinTokensResponse:
        """Return the tokens that can be used, oldest first."""
        store = self.backend.store
        async with store.reading() as session:
            found = await JoinTokens(session).open(store.clock())
            names = await organization_names(
                Repositories(session), (each.organization_ids for each in found)
            )
        return pb.ListJoinTokensResponse(
            tokens=[_token_to_proto(each, names_of(each.organization_ids, names)) for each in found]
        )

    async def DeleteJoinToken(
        self, request: pb.DeleteJoinTokenRequest, _context: Context
    ) -> pb.DeleteJoinTokenResponse:
        """Make a token useless."""
        async with self.backend.store.transaction(current_actor().name, "DeleteJoinToken") as tx:
            await note_act(tx, f"join token {request.id}", audited(request))
            if not await JoinTokens(tx.session).remove(request.id, tx.now):
                raise NotFoundError(f"there is no unused join token {request.id}", field="id")
        return pb.DeleteJoinTokenResponse()


async def organization_names(
    repositories: Repositories, scopes: Iterable[Sequence[str]]
) -> Mapping[str, str]:
    """Return the names of all organizations in these scopes, by id; those that are gone have none."""
    ids = {each for scope in scopes for each in scope}
    found = await repositories.organizations.by_ids(sorted(ids))
    return {row.id: row.name for row in found.values()}


def names_of(organization_ids: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the names of a scope, sorted; an organization that is gone is shown by its id, so that it is never empty."""
    return sorted(names.get(each, each) for each in organization_ids)


def _token_to_proto(token: JoinToken, organizations: list[str]) -> pb.JoinToken:
    return pb.JoinToken(
        id=token.id,
        node_id=token.node_id,
        organizations=sorted(organizations),
        created_at=to_timestamp(token.created_at),
        expires_at=to_timestamp(token.expires_at),
    )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    is_bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    is_visible = address.isascii() and address.isprintable() and " " not in address
    if not host or is_bare or not is_visible or not port.isdecimal():
        raise InvalidError(f"not host:port: {address[:100]!r}", field="addresses")
    if not 0 < int(port) <= _MAX_PORT:
        raise InvalidError(f"not a port: {address[:100]!r}", field="addresses")
