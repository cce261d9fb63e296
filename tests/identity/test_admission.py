"""Which port offers what, and to whom."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import organization_service_pb2_grpc as organization_grpc
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2 as device_pb
from tollkeeper.enrollment.v1 import device_enrollment_service_pb2_grpc as device_grpc
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as pb_grpc
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.domain.errors import PermissionDeniedError
from controlplane.pki.certificates import Authority, NodeName
from controlplane.rpc.actors import Actor
from controlplane.rpc.authorization import LOOKUPS_AT_A_TIME
from controlplane.rpc.node_admission import NodeAdmission, NodeProof
from controlplane.rpc.node_roster import NodeRoster
from controlplane.secrets.sealing import MasterKey, Sealer
from controlplane.server import StartError
from controlplane.store.administrators import Administrators
from controlplane.store.authorities import ensure_authority
from controlplane.store.database import Store
from controlplane.store.tables import Administrator
from dataplane.control.channels import secure_channel
from dataplane.control.identity import CONTROL_PLANE_NAME, Identity, KeyRequest
from dataplane.control.node_enrollment import join
from tests.distribution.node import Node
from tests.distribution.process import owner_token
from tests.fixtures_databases import PostgresServer
from tests.identity.control_planes import BEARER, ControlPlane, clock_ms, node_channel, running
from tests.rpc.admin_api import refused


@pytest.fixture
async def identity(control_plane: ControlPlane) -> Identity:
    return await control_plane.joined("eu-1")


@pytest.fixture
async def own_channel(
    identity: Identity, control_plane: ControlPlane
) -> AsyncIterator[grpc.aio.Channel]:
    async with node_channel(identity, control_plane) as channel:
        yield channel


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_administrators_are_not_served_where_nodes_call(
    own_channel: grpc.aio.Channel,
) -> None:
    organizations = organization_grpc.OrganizationServiceStub(own_channel)
    request = organization_pb.ListOrganizationsRequest()

    assert (
        await status_of(organizations.ListOrganizations(request, metadata=BEARER))
        is grpc.StatusCode.UNIMPLEMENTED
    )
    assert (
        await status_of(
            node_grpc.NodeServiceStub(own_channel).ListNodes(
                node_pb.ListNodesRequest(), metadata=BEARER
            )
        )
        is grpc.StatusCode.UNIMPLEMENTED
    )


async def test_nodes_are_not_served_where_administrators_call(control_plane: ControlPlane) -> None:
    channel = control_plane.as_administrator()
    reports = usage_grpc.UsageServiceStub(channel).ListReporters(usage_pb.ListReportersRequest())
    renewal = pb.RenewNodeRequest(certificate_request=b"x")

    with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
        await Node(channel).hello("eu-1")
    assert await status_of(reports) is grpc.StatusCode.UNIMPLEMENTED
    enrollment = pb_grpc.NodeEnrollmentServiceStub(channel)
    assert (
        await status_of(enrollment.RenewNode(renewal, metadata=BEARER))
        is grpc.StatusCode.PERMISSION_DENIED
    )


async def test_nobody_joins_where_nodes_call(own_channel: grpc.aio.Channel) -> None:
    request = pb.EnrollNodeRequest(token_secret="x", node_id="a", certificate_request=b"x")
    call = pb_grpc.NodeEnrollmentServiceStub(own_channel).EnrollNode(request)

    assert await status_of(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_who_shows_no_certificate_is_not_talked_to(control_plane: ControlPlane) -> None:
    channel = secure_channel(
        control_plane.node_address, control_plane.authority_pem, CONTROL_PLANE_NAME
    )
    async with channel:
        call = usage_grpc.UsageServiceStub(channel).ListReporters(
            usage_pb.ListReportersRequest(), metadata=BEARER, timeout=5
        )
        assert await status_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_a_strangers_authority_opens_nothing(
    control_plane: ControlPlane, identity: Identity
) -> None:
    stranger, request = Authority.make(datetime.now(UTC)), KeyRequest.make("eu-1")
    name = NodeName("eu-1", identity.issued_at_ms)
    issued = stranger.node_certificate(request.request_der, name, datetime.now(UTC))
    forged = replace(identity, chain_pem=issued.chain_pem, key_pem=request.key_pem)

    async with node_channel(forged, control_plane) as channel:
        call = usage_grpc.UsageServiceStub(channel).ListReporters(
            usage_pb.ListReportersRequest(), timeout=5
        )
        assert await status_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_a_node_says_hello_as_itself_only(
    control_plane: ControlPlane, own_channel: grpc.aio.Channel
) -> None:
    await control_plane.joined("eu-2")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Node(own_channel).hello("eu-2")

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "eu-1 cannot speak for eu-2" in str(caught.value.details())


async def test_a_node_reports_and_registers_as_itself_only(own_channel: grpc.aio.Channel) -> None:
    report = usage_grpc.UsageServiceStub(own_channel).ReportUsage()
    await report.write(usage_pb.ReportUsageRequest(batch_id=1, node_id="eu-1"))
    answer = await report.read()
    assert isinstance(answer, usage_pb.ReportUsageResponse)
    assert answer.batch_id == 1
    await report.write(usage_pb.ReportUsageRequest(batch_id=2, node_id="eu-2"))
    assert await status_of(report.read()) is grpc.StatusCode.PERMISSION_DENIED

    registration = device_grpc.DeviceEnrollmentServiceStub(own_channel).RegisterDevice(
        device_pb.RegisterDeviceRequest(
            node_id="eu-2", device_name="phone", address="192.0.2.1", address_prefix="192.0.2.1/32"
        )
    )
    assert "eu-1 cannot speak for eu-2" in (await refused(registration)).message


async def test_a_node_is_sent_nothing_of_organizations_that_it_does_not_serve(
    control_plane: ControlPlane,
) -> None:
    organizations = organization_grpc.OrganizationServiceStub(control_plane.as_administrator())
    for name in ("acme", "globex"):
        await organizations.CreateOrganization(
            organization_pb.CreateOrganizationRequest(
                organization=organization_pb.Organization(name=name)
            ),
            metadata=BEARER,
        )
    identity = await control_plane.joined("eu-1", organizations=["acme"])

    async with node_channel(identity, control_plane) as channel:
        node = Node(channel)
        await node.hello("eu-1")
        sent = b""
        while b"acme" not in sent:
            received = await node.follow()
            sent += b"".join(each.payload for each in received.resources.values())

    assert b"globex" not in sent
    assert (await control_plane.enrolled())["eu-1"].organizations == ["acme"]


async def test_a_node_that_is_known_no_more_is_not_taken_for_one_that_serves_everybody(
    data_dir: Path,
) -> None:
    store = Store(f"sqlite+aiosqlite:///{data_dir / 'controlplane.sqlite'}")
    admission = NodeAdmission(NodeRoster(store), NodeProof.OWN_AUTHORITY)
    actor = Actor("node:eu-1", node=NodeName("eu-1", 1))
    context: Any = None

    async with admission.admitted(actor, None):
        with pytest.raises(PermissionDeniedError, match="must join again"):
            admission.identify(context)
    await store.close()


async def test_tokens_that_somebody_made_up_take_few_connections_to_the_database(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most, by_token = [0], [0], Administrators.by_token

    async def counted(administrators: Administrators, digest: bytes) -> Administrator | None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        try:
            return await by_token(administrators, digest)
        finally:
            now[0] -= 1

    monkeypatch.setattr(Administrators, "by_token", counted)
    request = node_pb.ListNodesRequest()

    refusals = await asyncio.gather(
        *(
            refused(
                control_plane.nodes.ListNodes(
                    request, metadata=(("authorization", f"Bearer {owner_token()}"),)
                )
            )
            for _ in range(50)
        )
    )

    assert {each.code for each in refusals} == {grpc.StatusCode.UNAUTHENTICATED}
    assert 0 < most[0] <= LOOKUPS_AT_A_TIME


async def test_the_authority_stays_when_a_control_plane_starts_again(data_dir: Path) -> None:
    async with running(data_dir) as control_plane:
        identity = await control_plane.joined("eu-1")
    async with running(data_dir) as restarted:
        assert restarted.authority_pem == control_plane.authority_pem
        async with node_channel(identity, restarted) as channel:
            await Node(channel).hello("eu-1")


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    name = postgres_server.lend(postgres_template)
    yield postgres_server.url_of(name)
    postgres_server.take_back(name)


async def test_two_control_planes_share_the_authority_of_their_database(
    tmp_path: Path, postgres_url: str
) -> None:
    """Whoever joined at one is a node of the other at once, and banned at both within a second."""
    async with (
        running(tmp_path / "a", database_url=postgres_url) as first,
        running(tmp_path / "b", database_url=postgres_url) as second,
    ):
        assert first.authority_pem == second.authority_pem
        identity = await first.joined("eu-1")
        async with node_channel(identity, second) as channel:
            node = Node(channel)
            await node.hello("eu-1")
            await node.follow()

            await first.ban("eu-1")

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await node.read_until(lambda _message: False, deadline_s=1)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_of_many_that_use_one_token_at_once_one_joins(
    tmp_path: Path, postgres_url: str
) -> None:
    """Over two control planes, so that the database alone decides."""
    async with (
        running(tmp_path / "a", database_url=postgres_url) as first,
        running(tmp_path / "b", database_url=postgres_url) as second,
    ):
        token = await first.token()
        outcomes = await asyncio.gather(
            *(
                join(
                    replace(token, addresses=(at.admin_address,)),
                    f"eu-{number}",
                    KeyRequest.make("a"),
                    clock_ms,
                )
                for number, at in enumerate([first, second] * 3)
            ),
            return_exceptions=True,
        )
        joined = [each.node_id for each in outcomes if isinstance(each, Identity)]

        assert list(await first.enrolled()) == joined
        assert len(joined) == 1
        assert all("not valid" in str(each) for each in outcomes if isinstance(each, Exception))


async def test_control_planes_that_start_together_make_one_authority(
    tmp_path: Path, postgres_url: str
) -> None:
    store, sealer = Store(postgres_url), Sealer([MasterKey(b"k" * 32)])

    made = await asyncio.gather(*(ensure_authority(store, sealer) for _ in range(5)))

    await store.close()
    assert len({each.certificate_pem for each in made}) == 1


async def test_another_master_key_does_not_open_the_authority(data_dir: Path) -> None:
    async with running(data_dir):
        pass
    other = base64.b64encode(secrets.token_bytes(32)).decode()

    with pytest.raises(StartError, match="sealed under another TOLLKEEPER_MASTER_KEY"):
        async with running(data_dir, master_key=other):
            pass
