"""Joining: a token is used once, by whom it is for, at the control plane that made it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.duration_pb2 import Duration
from sqlmodel import select
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as pb_grpc

from controlplane.pki import certificates
from controlplane.rpc import node_enrollment
from controlplane.settings import TlsMode
from controlplane.store.database import Store
from controlplane.store.fleet_tables import JoinToken as JoinTokenRow
from controlplane.store.join_tokens import JoinTokens
from dataplane.control.identity import CONTROL_PLANE_NAME, Identity, IdentityError, KeyRequest
from dataplane.control.node_enrollment import join
from dataplane.domain.join_tokens import JoinToken
from tests.distribution.node import Node
from tests.identity.control_planes import BEARER, ControlPlane, clock_ms, node_channel, running
from tests.rpc.admin_api import refused


async def enroll(
    control_plane: ControlPlane, token: JoinToken, node_id: str, request: bytes
) -> pb.EnrollNodeResponse:
    stub = pb_grpc.NodeEnrollmentServiceStub(control_plane.as_administrator())
    return await stub.EnrollNode(
        pb.EnrollNodeRequest(
            token_secret=token.secret, node_id=node_id, certificate_request=request
        ),
        timeout=5,
    )


Answer = pb.EnrollNodeResponse
Context = grpc.aio.ServicerContext[pb.EnrollNodeRequest, Answer]


@asynccontextmanager
async def posing(
    authority: certificates.Authority,
    enroll_node: Callable[[pb.EnrollNodeRequest, Context], Awaitable[Answer]],
) -> AsyncIterator[str]:
    """Serve EnrollNode with a certificate that an authority signs; yields the address."""
    leaf = authority.server_certificate(["127.0.0.1"], datetime.now(UTC))
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        enroll_node,
        request_deserializer=pb.EnrollNodeRequest.FromString,
        response_serializer=pb.EnrollNodeResponse.SerializeToString,
    )
    service = "tollkeeper.enrollment.v1.NodeEnrollmentService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"EnrollNode": handler}),)
    )
    credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.chain_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def leaf_of(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificates(identity.chain_pem)[0]


async def test_a_node_joins_and_follows_the_configuration(control_plane: ControlPlane) -> None:
    identity = await control_plane.joined("eu-1")

    async with node_channel(identity, control_plane) as channel:
        node = Node(channel)
        await node.hello("eu-1")
        received = await node.follow()

    assert received.begin.to.revision > 0
    assert (await control_plane.enrolled())["eu-1"].HasField("enrolled_at")


async def test_a_certificate_is_short_and_only_a_clients(control_plane: ControlPlane) -> None:
    leaf = leaf_of(await control_plane.joined("eu-1"))

    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert "tollkeeper://node/eu-1" in names.get_values_for_type(x509.UniformResourceIdentifier)
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_a_token_is_used_once(control_plane: ControlPlane) -> None:
    token = await control_plane.token()
    await join(token, "eu-1", KeyRequest.make("eu-1"), clock_ms)

    with pytest.raises(IdentityError, match="join token is not valid"):
        await join(token, "eu-2", KeyRequest.make("eu-2"), clock_ms)

    assert set(await control_plane.enrolled()) == {"eu-1"}


async def test_a_lost_answer_is_given_again_to_the_same_request_only(
    control_plane: ControlPlane,
) -> None:
    token, mine, others = await control_plane.token(), KeyRequest.make("a"), KeyRequest.make("a")
    first = await enroll(control_plane, token, "eu-1", mine.request_der)

    again = await enroll(control_plane, token, "eu-1", mine.request_der)
    refusal = await refused(enroll(control_plane, token, "eu-1", others.request_der))

    assert again == first
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("used_ago", "expires_in"),
    [
        (timedelta(minutes=11), timedelta(hours=1)),
        (None, timedelta(0)),
    ],
    ids=["answered long ago", "expired"],
)
async def test_a_token_of_former_times_opens_nothing(
    control_plane: ControlPlane, used_ago: timedelta | None, expires_in: timedelta
) -> None:
    token, request = await control_plane.token(), KeyRequest.make("eu-1")
    if used_ago is not None:
        await enroll(control_plane, token, "eu-1", request.request_der)
    store = Store(f"sqlite+aiosqlite:///{control_plane.data_dir / 'controlplane.sqlite'}")
    now = datetime.now(UTC)
    async with store.ledger() as session:
        row = (await session.exec(select(JoinTokenRow))).one()
        row.used_at = now - used_ago if used_ago is not None else None
        row.expires_at = now + expires_in
        session.add(row)
    await store.close()

    refusal = await refused(enroll(control_plane, token, "eu-1", request.request_der))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_API_KEY")


async def test_a_token_that_was_used_tells_nothing_of_nodes(control_plane: ControlPlane) -> None:
    token, request = await control_plane.token(), KeyRequest.make("a")
    await enroll(control_plane, token, "eu-1", request.request_der)
    await control_plane.ban("eu-2")

    said = {
        (await refused(enroll(control_plane, token, node_id, request.request_der))).message
        for node_id in ("eu-2", "eu-3")
    }

    assert said == {"the join token is not valid"}


async def test_of_a_flood_of_strangers_few_wait_and_the_others_are_refused_at_once(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_enrollment, "MAX_WAITING", 2)
    database_answers, by_secret = asyncio.Event(), JoinTokens.by_secret

    async def slow(tokens: JoinTokens, digest: bytes) -> JoinTokenRow | None:
        await database_answers.wait()
        return await by_secret(tokens, digest)

    monkeypatch.setattr(JoinTokens, "by_secret", slow)
    nobodys = replace(await control_plane.token(), secret="x" * 43)
    calls = [
        asyncio.create_task(refused(enroll(control_plane, nobodys, "eu-1", b"x")))
        for _ in range(node_enrollment.MAX_AT_A_TIME + 2 + 3)
    ]
    async with asyncio.timeout(node_enrollment.TURN_WAIT_S / 2):
        while sum(each.done() for each in calls) < 3:
            await asyncio.wait(
                [each for each in calls if not each.done()], return_when=asyncio.FIRST_COMPLETED
            )

    database_answers.set()

    codes = [each.code for each in await asyncio.gather(*calls)]
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == 3
    assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == len(calls) - 3


async def test_a_token_for_one_node_is_no_other_ones(control_plane: ControlPlane) -> None:
    token, request = await control_plane.token("eu-1"), KeyRequest.make("eu-2")

    refusal = await refused(enroll(control_plane, token, "eu-2", request.request_der))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    await enroll(control_plane, token, "eu-1", request.request_der)


async def test_an_id_is_taken_over_only_with_a_token_for_it(control_plane: ControlPlane) -> None:
    former = await control_plane.joined("eu-1")
    request = KeyRequest.make("eu-1")
    refusal = await refused(
        enroll(control_plane, await control_plane.token(), "eu-1", request.request_der)
    )
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS

    newer = await control_plane.joined("eu-1")

    async with (
        node_channel(former, control_plane) as of_former,
        node_channel(newer, control_plane) as of_newer,
    ):
        await Node(of_newer).hello("eu-1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Node(of_former).hello("eu-1")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "must join again" in str(caught.value.details())


def rsa_request() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(serialization.Encoding.DER)


def p384_request() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, SHA256()).public_bytes(serialization.Encoding.DER)


def altered_request() -> bytes:
    request = KeyRequest.make("node-a").request_der
    return request.replace(b"node-a", b"node-b")


def noise() -> bytes:
    return b"x"


async def test_a_request_that_its_own_key_did_not_sign_uses_no_token_up(
    control_plane: ControlPlane,
) -> None:
    token = await control_plane.token()

    for made in (noise, rsa_request, p384_request, altered_request):
        refusal = await refused(enroll(control_plane, token, "eu-1", made()))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, made.__name__

    await join(token, "eu-1", KeyRequest.make("eu-1"), clock_ms)


async def test_nothing_but_the_key_is_taken_from_a_request(control_plane: ControlPlane) -> None:
    token = await control_plane.token()

    identity = await join(token, "eu-1", KeyRequest.make("somebody-else"), clock_ms)

    assert leaf_of(identity).subject.rfc4514_string() == "CN=eu-1"


async def test_a_control_plane_of_another_authority_is_not_told_the_secret(
    control_plane: ControlPlane,
) -> None:
    """Somebody in between has a certificate of the right name, from an authority of his own."""
    token = await control_plane.token()
    stranger = certificates.Authority.make(datetime.now(UTC))
    asked: list[object] = []

    async def enroll_node(request: pb.EnrollNodeRequest, _context: Context) -> Answer:
        asked.append(request)
        return pb.EnrollNodeResponse()

    async with posing(stranger, enroll_node) as address:
        between = replace(token, addresses=(address,))
        with pytest.raises(IdentityError, match="no control plane that the join token knows"):
            await join(between, "eu-1", KeyRequest.make("eu-1"), clock_ms, deadline_s=0)
        trusting = replace(between, authority_der=stranger.certificate_der)
        with pytest.raises(IdentityError, match="without a certificate"):
            await join(trusting, "eu-1", KeyRequest.make("eu-1"), clock_ms, deadline_s=0)
    assert len(asked) == 1


async def test_joining_is_tried_again_where_another_change_came_between() -> None:
    """Its second answer lacks an authority: a node that kept it would know no control plane any more."""
    authority = certificates.Authority.make(datetime.now(UTC))
    asked: list[object] = []

    async def enroll_node(request: pb.EnrollNodeRequest, context: Context) -> Answer:
        asked.append(request)
        if len(asked) == 1:
            await context.abort(grpc.StatusCode.ABORTED, "somebody else changed this")
        name = certificates.NodeName(request.node_id, 1)
        issued = authority.node_certificate(request.certificate_request, name, datetime.now(UTC))
        return pb.EnrollNodeResponse(certificate_chain=issued.chain_pem.decode())

    async with posing(authority, enroll_node) as address:
        token = JoinToken("secret", authority.certificate_der, (address,), "")
        with pytest.raises(IdentityError, match="without an authority"):
            await join(token, "eu-1", KeyRequest.make("eu-1"), clock_ms, deadline_s=5)
    assert len(asked) == 2


@pytest.mark.parametrize("node_id", ["eu-1", CONTROL_PLANE_NAME])
async def test_a_certificate_of_a_node_proves_no_control_plane(
    control_plane: ControlPlane, node_id: str
) -> None:
    """A node that was taken over cannot pose as a control plane to the others, whatever it is called."""
    identity = await control_plane.joined(node_id)
    token = await control_plane.token()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(identity.key_pem, identity.chain_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()

    with pytest.raises(IdentityError, match="no control plane that the join token knows"):
        await join(
            replace(token, addresses=(f"127.0.0.1:{port}",)),
            "eu-2",
            KeyRequest.make("eu-2"),
            clock_ms,
            deadline_s=0,
        )
    await server.stop(None)


async def test_tokens_are_listed_and_deleted_without_their_secrets(
    control_plane: ControlPlane,
) -> None:
    nodes = control_plane.nodes
    token = await control_plane.token("eu-1", lifetime=Duration(seconds=120))
    listed = await nodes.ListJoinTokens(node_pb.ListJoinTokensRequest(), metadata=BEARER)
    [shown] = listed.tokens
    assert shown.node_id == "eu-1"
    assert token.secret not in str(listed)
    lifetime = shown.expires_at.ToDatetime() - shown.created_at.ToDatetime()
    assert lifetime == timedelta(seconds=120)

    await nodes.DeleteJoinToken(node_pb.DeleteJoinTokenRequest(id=shown.id), metadata=BEARER)

    with pytest.raises(IdentityError, match="not valid"):
        await join(token, "eu-1", KeyRequest.make("eu-1"), clock_ms)
    again = nodes.DeleteJoinToken(node_pb.DeleteJoinTokenRequest(id=shown.id), metadata=BEARER)
    assert (await refused(again)).code is grpc.StatusCode.NOT_FOUND


async def test_a_token_holds_addresses_that_can_be_called(control_plane: ControlPlane) -> None:
    nodes = control_plane.nodes
    for address in ("nowhere", "host:", "host:0", "host:99999", "::1:50051", "a b:1"):
        request = node_pb.CreateJoinTokenRequest(addresses=[address])

        refusal = await refused(nodes.CreateJoinToken(request, metadata=BEARER))

        assert (refusal.code, refusal.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            ["addresses"],
        ), address


async def test_making_a_token_and_joining_are_in_the_audit_without_secrets(
    control_plane: ControlPlane,
) -> None:
    token = await control_plane.token("eu-1")
    await join(token, "eu-1", KeyRequest.make("eu-1"), clock_ms)

    content = (control_plane.data_dir / "controlplane.sqlite").read_bytes()
    wal = control_plane.data_dir / "controlplane.sqlite-wal"
    content += wal.read_bytes() if wal.exists() else b""

    assert b"CreateJoinToken" in content
    assert b"EnrollNode" in content
    assert token.secret.encode() not in content
    assert b"PRIVATE KEY" not in content


async def test_nodes_of_a_shared_token_do_not_join_one_by_one(data_dir: Path) -> None:
    request = pb.EnrollNodeRequest(token_secret="x", node_id="eu-1", certificate_request=b"x")
    async with (
        running(data_dir, tls=TlsMode.OFF, join_token="j0in-t0ken-" * 4) as control_plane,
        grpc.aio.insecure_channel(control_plane.admin_address) as channel,
    ):
        refusal = await refused(pb_grpc.NodeEnrollmentServiceStub(channel).EnrollNode(request))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "share one token" in refusal.message
