"""Users of organizations."""

from collections.abc import Callable
from typing import Final

from tollkeeper.admin.v1 import changes_pb2, user_service_pb2_grpc
from tollkeeper.admin.v1 import user_service_pb2 as pb

from controlplane.domain.names import SubjectKind, SubjectName, new_id, parent_of
from controlplane.rpc.changing import AdminServicer, changing
from controlplane.rpc.deleting import delete_row
from controlplane.rpc.interception import Context
from controlplane.rpc.limits import set_limits
from controlplane.rpc.masks import masked_fields
from controlplane.rpc.pages import page_of
from controlplane.rpc.resources import check_etag, stamps_of
from controlplane.rpc.tiers import check_tier
from controlplane.store.repositories import Repositories
from controlplane.store.tables import User
from controlplane.store.transactions import Transaction

# Columns have the names of the fields.
_CHANGEABLE: Final = frozenset({"email", "tier", "suspended"})


def user_to_proto(row: User) -> pb.User:
    """Return a row as the admin API shows it."""
    return pb.User(
        name=row.name,
        email=row.email,
        tier=row.tier,
        suspended=row.suspended,
        **stamps_of(row),
    )


class UserServicer(AdminServicer, user_service_pb2_grpc.UserServiceServicer):
    """Serves UserService."""

    @changing(pb.User)
    async def CreateUser(
        self, tx: Transaction, request: pb.CreateUserRequest
    ) -> Callable[[], pb.User]:
        """Add a user, with their limits."""
        given = request.user
        organization = await tx.organizations.get(parent_of(given.name), field="user.name")
        await check_tier(tx, given.tier, field="user.tier")
        row = User(
            id=new_id(self.backend.random_below),
            name=given.name,
            organization_id=organization.id,
            email=given.email,
            tier=given.tier,
            suspended=given.suspended,
            created_at=tx.now,
            updated_at=tx.now,
        )
        await tx.users.add(row)
        subject = SubjectName(SubjectKind.USER, row.name)
        await set_limits(tx, subject, row.id, request.limits, field="limits")
        return lambda: user_to_proto(row)

    async def GetUser(self, request: pb.GetUserRequest, _context: Context) -> pb.User:
        """Return a user."""
        async with self.backend.store.reading() as session:
            return user_to_proto(await Repositories(session).users.get(request.name))

    async def ListUsers(
        self, request: pb.ListUsersRequest, _context: Context
    ) -> pb.ListUsersResponse:
        """Return a page of users."""
        page = page_of(request)
        async with self.backend.store.reading() as session:
            repositories = Repositories(session)
            owner = await repositories.organization_id(request.organization)
            rows = await repositories.users.page(
                after=page.after_name, size=page.fetch, organization_id=owner
            )
        return pb.ListUsersResponse(
            users=map(user_to_proto, page.cut(rows)), next_page_token=page.next_token(rows, "name")
        )

    @changing(pb.User)
    async def UpdateUser(
        self, tx: Transaction, request: pb.UpdateUserRequest
    ) -> Callable[[], pb.User]:
        """Change a user; a suspension is published at once, without waiting for company."""
        fields = masked_fields(request.update_mask, _CHANGEABLE)
        row = await tx.users.get_for_change(request.user.name)
        check_etag(row, request.user)
        if "tier" in fields:
            await check_tier(tx, request.user.tier, field="user.tier")
        for field in fields:
            setattr(row, field, getattr(request.user, field))
        return lambda: user_to_proto(row)

    @changing(changes_pb2.DeleteResult)
    async def DeleteUser(
        self, tx: Transaction, request: pb.DeleteUserRequest
    ) -> Callable[[], changes_pb2.DeleteResult]:
        """Remove a user, by force with their keys."""
        row = await tx.users.get_for_change(request.name)
        check_etag(row, request)
        return await delete_row(tx, self.backend.revoker, row, force=request.force)
