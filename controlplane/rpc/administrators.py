"""Administrators: who may call the admin services."""

from collections.abc import Callable
from typing import Final

from tollkeeper.admin.v1 import administrator_service_pb2 as pb
from tollkeeper.admin.v1 import administrator_service_pb2_grpc, changes_pb2

from controlplane.domain.errors import InvalidError, PreconditionError
from controlplane.domain.keys import SECRET_BYTES, mint_administrator_token, sha256_of
from controlplane.domain.names import new_id
from controlplane.rpc.actors import NODE
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.interception import Context
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import to_timestamp
from controlplane.store.repositories import Repositories
from controlplane.store.service import SYSTEM_ACTOR
from controlplane.store.tables import Administrator
from controlplane.store.transactions import Transaction

# The audit shows these for what no person did.
_RESERVED: Final = frozenset({NODE.name, SYSTEM_ACTOR})


def administrator_to_proto(row: Administrator) -> pb.Administrator:
    """Return an administrator as the admin API shows it, without the token."""
    return pb.Administrator(
        name=row.name,
        role=row.role,  # type: ignore[arg-type]  # a number of the enum
        id=row.id,
        revision=row.revision,
        created_at=to_timestamp(row.created_at),
    )


class AdministratorServicer(AdminServicer, administrator_service_pb2_grpc.AdminServiceServicer):
    """Serves AdminService."""

    @changing(pb.CreateAdministratorResponse)
    async def CreateAdministrator(
        self, tx: Transaction, request: pb.CreateAdministratorRequest
    ) -> Callable[[], pb.CreateAdministratorResponse]:
        """Add an administrator and show the token, this once; a dry run shows none."""
        given = request.administrator
        if given.name in _RESERVED:
            raise InvalidError("this name is reserved", field="administrator.name")
        token = mint_administrator_token(self.backend.random_bytes(SECRET_BYTES))
        row = Administrator(
            id=new_id(self.backend.random_below),
            name=given.name,
            role=int(given.role),
            token_sha256=sha256_of(token),
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.administrators.add(row)
        shown = "" if request.validate_only else token
        return lambda: pb.CreateAdministratorResponse(
            administrator=administrator_to_proto(row), token=shown
        )

    async def ListAdministrators(
        self, request: pb.ListAdministratorsRequest, _context: Context
    ) -> pb.ListAdministratorsResponse:
        """Return a page of administrators."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            rows = await Repositories(session).administrators.page(
                after=page.after_name, size=page.fetch
            )
        return pb.ListAdministratorsResponse(
            administrators=map(administrator_to_proto, page.cut(rows)),
            next_page_token=page.next_token(rows, "name"),
        )

    @changing(changes_pb2.DeleteResult)
    async def DeleteAdministrator(
        self, tx: Transaction, request: pb.DeleteAdministratorRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove an administrator; the token is refused from the next call on."""
        owners = await tx.administrators.owners_for_change()
        row = await tx.administrators.get_for_change(request.name)
        if [owner.id for owner in owners] == [row.id]:
            raise PreconditionError("the last owner cannot be removed", field="name")
        await tx.delete(row)
        return lambda: changes_pb2.DeleteResult(revision=tx.revision)
