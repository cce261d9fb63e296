"""Who may call what, over every RPC that the contract has."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import tollkeeper
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc import aio
from tollkeeper.common.v1 import access_pb2, errors_pb2

from controlplane.domain.errors import DomainError, ErrorReason, PermissionDeniedError
from controlplane.domain.roles import Role, may
from controlplane.rpc.actors import NODE, Actor
from controlplane.rpc.admin_services import interceptors
from controlplane.rpc.authorization import (
    PUBLIC_PERMISSION,
    Authenticator,
    check_permission,
    permission_of,
)
from controlplane.rpc.errors import STATUS_OF_REASON, error_edge, rich_status, status_of
from controlplane.rpc.interception import SurroundingInterceptor
from controlplane.store.database import Store
from controlplane.store.service import ensure_bootstrap_owner
from tests.rpc.admin_api import NODE_TOKEN, OWNER_TOKEN, AdminApi, listening, refused


def services() -> Iterator[ServiceDescriptor]:
    """Every service of the contract, also those that this package does not serve."""
    pool = descriptor_pool.Default()
    root = Path(next(iter(tollkeeper.__path__)))
    for file in sorted(root.rglob("*_service_pb2.py")):
        module = file.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        __import__(f"tollkeeper.{module}")
        proto = f"tollkeeper/{file.relative_to(root).as_posix().removesuffix('_pb2.py')}.proto"
        yield from pool.FindFileByName(proto).services_by_name.values()


METHODS: list[MethodDescriptor] = [method for service in services() for method in service.methods]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest.mark.parametrize("method", METHODS, ids=path_of)
def test_every_rpc_says_who_may_call_it_and_what_is_kept(method: MethodDescriptor) -> None:
    access = method.GetOptions().Extensions[access_pb2.access]
    noun, _, verb = access.permission.partition(".")

    assert access.audit != access_pb2.AUDIT_CLASS_UNSPECIFIED
    assert permission_of(path_of(method)) == access.permission
    if access.permission == PUBLIC_PERMISSION:
        # Whoever holds a join token has no other credential yet.
        assert path_of(method) == "/tollkeeper.enrollment.v1.NodeEnrollmentService/EnrollNode"
        for actor in (NODE, *(Actor("ann", role) for role in Role)):
            with pytest.raises(PermissionDeniedError):
                check_permission(actor, access.permission)
    elif noun == "node":
        check_permission(NODE, access.permission)
        assert not any(may(role, access.permission) for role in Role)
    else:
        assert verb in {"read", "write"}
        assert may(Role.OWNER, access.permission)
        with pytest.raises(PermissionDeniedError):
            check_permission(NODE, access.permission)
    is_read = access.audit == access_pb2.AUDIT_CLASS_READ
    assert is_read == (verb == "read")


@pytest.mark.parametrize(
    ("role", "writes"),
    [
        (
            Role.OWNER,
            "administrators api_keys configuration credentials devices limits nodes operations"
            " organizations prices providers routers tiers users",
        ),
        (
            Role.ADMIN,
            "api_keys configuration credentials devices limits nodes operations organizations prices"
            " providers routers tiers users",
        ),
        (Role.OPERATOR, "api_keys devices limits operations routers users"),
        (Role.BILLING, "limits prices tiers"),
        (Role.AUDITOR, ""),
    ],
)
def test_a_role_reads_everything_and_writes_its_own(role: Role, writes: str) -> None:
    permissions = {permission_of(path_of(method)) for method in METHODS}
    held = {permission for permission in permissions if may(role, permission)}

    assert {p for p in held if p.endswith(".write")} == {f"{noun}.write" for noun in writes.split()}
    assert {p for p in permissions if p.endswith(".read")} <= held


@pytest.mark.parametrize("permission", ["", "x", "users", "users.delete", "node.stream", "x.read"])
def test_a_permission_that_nobody_knows_is_held_by_nobody(permission: str) -> None:
    for role in Role:
        with pytest.raises(PermissionDeniedError):
            check_permission(Actor("ann", role), permission)


def test_the_reasons_are_those_of_the_contract() -> None:
    assert {f"ERROR_REASON_{reason.name}": reason.value for reason in ErrorReason} == dict(
        errors_pb2.ErrorReason.items()
    )


def test_every_reason_has_a_status() -> None:
    assert set(STATUS_OF_REASON) == set(ErrorReason)


def subclasses(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_has_a_reason_of_its_own_and_a_status() -> None:
    kinds = list(subclasses(DomainError))

    assert len(kinds) >= 9
    for kind in kinds:
        assert kind.reason in STATUS_OF_REASON
        assert kind.reason is not ErrorReason.INTERNAL


async def test_a_call_needs_a_valid_token(api: AdminApi) -> None:
    for token, reason in (
        ("", "MISSING_CREDENTIALS"),
        ("tka_short", "INVALID_API_KEY"),
        (OWNER_TOKEN[:-1] + "x", "INVALID_API_KEY"),
    ):
        stranger = AdminApi(api.address, token)
        refusal = await refused(stranger.create_organization("acme"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        await stranger.channel.close()


async def test_a_node_may_not_administer(api: AdminApi) -> None:
    node = AdminApi(api.address, NODE_TOKEN)

    refusal = await refused(node.create_organization("acme"))

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )
    await node.channel.close()


async def test_a_caller_without_permission_learns_nothing_of_the_request(api: AdminApi) -> None:
    """Authorization comes before validation."""
    stranger = AdminApi(api.address, "")

    refusal = await refused(stranger.create_organization("Not A Name"))

    assert refusal.fields == []
    await stranger.channel.close()


async def test_a_method_that_the_contract_does_not_know_is_refused(api: AdminApi) -> None:
    call: Any = api.channel.unary_unary("/tollkeeper.admin.v1.OrganizationService/Nothing")

    with pytest.raises(aio.AioRpcError) as caught:
        await call(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def echo(request_iterator: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in request_iterator:
        yield message
        if message == b"break":
            raise ValueError("prompt of a customer")


async def test_streams_are_gated_as_calls_are(store: Store) -> None:
    """A stream of a node, of an owner, and one of a service that declares nothing."""
    await ensure_bootstrap_owner(store, OWNER_TOKEN, secrets.randbelow)
    server = aio.server(interceptors=interceptors(store, node_token=NODE_TOKEN))
    names = {"tollkeeper.config.v1.ConfigService": "StreamConfig", "stranger.Service": "Echo"}
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(
                service,
                {method: grpc.stream_stream_rpc_method_handler(echo)},
            )
            for service, method in names.items()
        )
    )

    async with listening(server) as address, aio.insecure_channel(address) as channel:

        async def outcome(path: str, token: str, *messages: bytes) -> object:
            open_stream: Any = channel.stream_stream(path)
            call = open_stream(
                iter(messages), metadata=(("authorization", f"Bearer {token}"),), timeout=10
            )
            try:
                return [message async for message in call]
            except aio.AioRpcError as error:
                return error.code()

        stream = "/tollkeeper.config.v1.ConfigService/StreamConfig"
        # Refused callers send nothing: a client that is still writing when it is refused may report that instead.
        assert await outcome(stream, NODE_TOKEN, b"a", b"b") == [b"a", b"b"]
        assert await outcome(stream, OWNER_TOKEN) is grpc.StatusCode.PERMISSION_DENIED
        assert await outcome(stream, "x") is grpc.StatusCode.UNAUTHENTICATED
        for token in (NODE_TOKEN, OWNER_TOKEN):
            denied = await outcome("/stranger.Service/Echo", token)
            assert denied is grpc.StatusCode.PERMISSION_DENIED


async def test_a_fault_of_ours_is_logged_without_what_the_request_held() -> None:
    server = aio.server(interceptors=[SurroundingInterceptor(error_edge)])
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("s.S", {"Echo": handler}),)
    )

    with structlog.testing.capture_logs() as logged:
        async with listening(server) as address, aio.insecure_channel(address) as channel:
            open_stream: Any = channel.stream_stream("/s.S/Echo")
            call = open_stream(iter([b"break"]), timeout=10)
            assert await call.read() == b"break"
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    [line] = logged
    assert (line["event"], line["method"], line["errors"]) == (
        "call_failed",
        "/s.S/Echo",
        ["ValueError"],
    )
    assert any("echo" in frame for frame in line["frames"])
    assert "customer" not in f"{line}{caught.value.details()}"


async def test_a_known_administrator_is_looked_up_again_after_a_while(store: Store) -> None:
    await ensure_bootstrap_owner(store, OWNER_TOKEN, secrets.randbelow)
    now = 0.0
    authenticator = Authenticator(store, NODE_TOKEN, monotonic=lambda: now)
    authorization = f"Bearer {OWNER_TOKEN}"
    assert await authenticator.actor_of(authorization) == Actor("bootstrap", Role.OWNER)
    # Another control plane on this database deletes it: this one hears nothing.
    other = Store(store.engine.url)
    async with other.transaction("ann", "x") as tx:
        await tx.delete(await tx.administrators.get("bootstrap"))
    await other.close()

    assert (await authenticator.actor_of(authorization)).name == "bootstrap"
    now = 2.5
    with pytest.raises(DomainError, match="not valid"):
        await authenticator.actor_of(authorization)


def test_a_node_token_that_could_be_guessed_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 characters"):
        interceptors(Store(f"sqlite+aiosqlite:///{tmp_path}/x"), node_token="short")


def test_a_refusal_says_its_reason_to_programs() -> None:
    error = PermissionDeniedError("no", field="x")

    status = rich_status(error)

    assert (status.code, status.message) == (grpc.StatusCode.PERMISSION_DENIED.value[0], "no")
    assert status_of(error) is grpc.StatusCode.PERMISSION_DENIED
    assert len(status.details) == 1
