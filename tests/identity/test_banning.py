"""A ban: streams end within a second, the certificate opens nothing, and what the node may know is named."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest
from tollkeeper.admin.v1 import credential_service_pb2 as credential_pb
from tollkeeper.admin.v1 import credential_service_pb2_grpc as credential_grpc
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb
from tollkeeper.admin.v1 import organization_service_pb2_grpc as organization_grpc
from tollkeeper.admin.v1 import provider_service_pb2 as provider_pb
from tollkeeper.admin.v1 import provider_service_pb2_grpc as provider_grpc
from tollkeeper.config.v1 import resources_pb2
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2 as pb
from tollkeeper.enrollment.v1 import node_enrollment_service_pb2_grpc as pb_grpc
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.rpc.node_roster import NodeRoster
from controlplane.settings import TlsMode
from dataplane.control.identity import IdentityError, KeyRequest
from dataplane.control.node_enrollment import join
from tests.distribution.node import Node, connected
from tests.identity.control_planes import (
    BEARER,
    OWNER_TOKEN,
    ControlPlane,
    clock_ms,
    node_channel,
    running,
)
from tests.rpc.admin_api import AdminApi, refused

SHARED_TOKEN = "j0in-t0ken-" * 4


async def test_a_banned_nodes_streams_end_within_a_second_and_stay_closed(
    control_plane: ControlPlane,
) -> None:
    identity, other = await control_plane.joined("eu-1"), await control_plane.joined("eu-2")
    async with (
        node_channel(identity, control_plane) as channel,
        node_channel(other, control_plane) as others,
    ):
        node, neighbour = Node(channel), Node(others)
        await node.hello("eu-1")
        await node.follow()
        await neighbour.hello("eu-2")
        await neighbour.follow()
        report = usage_grpc.UsageServiceStub(channel).ReportUsage()
        await report.write(usage_pb.ReportUsageRequest(batch_id=1, node_id="eu-1"))
        await report.read()

        await control_plane.ban("eu-1", "its host was taken over")

        with pytest.raises(grpc.aio.AioRpcError) as of_stream:
            await node.read_until(lambda _message: False, deadline_s=1)
        async with asyncio.timeout(1):
            with pytest.raises(grpc.aio.AioRpcError) as of_report:
                await report.read()
        assert of_stream.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert of_report.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "eu-1 is banned" in str(of_report.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as again:
            await Node(channel).hello("eu-1")
        assert again.value.code() is grpc.StatusCode.PERMISSION_DENIED
        renewal = pb.RenewNodeRequest(certificate_request=KeyRequest.make("eu-1").request_der)
        denied = pb_grpc.NodeEnrollmentServiceStub(channel).RenewNode(renewal)
        assert (await refused(denied)).code is grpc.StatusCode.PERMISSION_DENIED
        reporters = usage_grpc.UsageServiceStub(others).ListReporters(
            usage_pb.ListReportersRequest()
        )
        assert (await reporters).node_ids == ["eu-2"]


async def test_a_banned_node_joins_again_only_after_the_ban_is_lifted(
    control_plane: ControlPlane,
) -> None:
    former = await control_plane.joined("eu-1")
    await control_plane.ban("eu-1", "stolen")
    assert (await control_plane.enrolled())["eu-1"].ban_reason == "stolen"
    with pytest.raises(IdentityError, match="eu-1 is banned"):
        await join(await control_plane.token(), "eu-1", KeyRequest.make("eu-1"), clock_ms)

    await control_plane.unban("eu-1")

    async with node_channel(former, control_plane) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Node(channel).hello("eu-1")
    assert "must join again" in str(caught.value.details())
    newer = await control_plane.joined("eu-1")
    async with (
        node_channel(former, control_plane) as of_former,
        node_channel(newer, control_plane) as of_newer,
    ):
        await Node(of_newer).hello("eu-1")
        with pytest.raises(grpc.aio.AioRpcError, match="must join again"):
            await Node(of_former).hello("eu-1")


async def test_lifting_a_ban_that_is_none_is_refused(control_plane: ControlPlane) -> None:
    await control_plane.joined("eu-1")

    refusal = await refused(control_plane.unban("eu-1"))

    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def _credentials(channel: grpc.aio.Channel, *names: str) -> dict[str, str]:
    """Make a provider and a credential for each `organization/provider` or `provider`; return ids by name."""
    providers = provider_grpc.ProviderServiceStub(channel)
    credentials = credential_grpc.CredentialServiceStub(channel)
    made: dict[str, str] = {}
    for name in names:
        await providers.CreateProvider(
            provider_pb.CreateProviderRequest(
                provider=provider_pb.Provider(
                    name=name,
                    kind="mock",
                    endpoints=[
                        resources_pb2.Endpoint(
                            dialect=resources_pb2.DIALECT_OPENAI, base_url="http://127.0.0.1:9/v1"
                        )
                    ],
                )
            ),
            metadata=BEARER,
        )
        created = await credentials.CreateCredential(
            credential_pb.CreateCredentialRequest(
                credential=credential_pb.Credential(name=f"{name}/main"), secret="sk-" + "x" * 20
            ),
            metadata=BEARER,
        )
        made[f"{name}/main"] = created.id
    return made


async def test_a_ban_names_the_credentials_that_the_node_may_have_received(
    control_plane: ControlPlane,
) -> None:
    channel = control_plane.as_administrator()
    organizations = organization_grpc.OrganizationServiceStub(channel)
    for name in ("acme", "globex"):
        await organizations.CreateOrganization(
            organization_pb.CreateOrganizationRequest(
                organization=organization_pb.Organization(name=name)
            ),
            metadata=BEARER,
        )
    ids = await _credentials(channel, "shared", "gone", "acme/own", "globex/own")
    await control_plane.joined("eu-1", organizations=["acme"])
    await control_plane.joined("eu-2", organizations=["acme"])
    await control_plane.joined("eu-2", organizations=["globex"])
    await credential_grpc.CredentialServiceStub(channel).DeleteCredential(
        credential_pb.DeleteCredentialRequest(name="gone/main"), metadata=BEARER
    )

    of_one = await control_plane.ban("eu-1")
    of_both = await control_plane.ban("eu-2")
    of_none = await control_plane.ban("never-joined")

    assert set(of_one.received_credentials) == {
        "acme/own/main",
        "shared/main",
        ids["gone/main"],
    }
    assert set(of_both.received_credentials) == {*of_one.received_credentials, "globex/own/main"}
    assert not of_none.received_credentials
    assert of_one.revision < of_both.revision


async def test_a_ban_that_is_repeated_names_the_same_credentials(data_dir: Path) -> None:
    """Where nodes share a token nothing is known of a node but its ban: it may have been there before."""
    async with (
        running(data_dir, tls=TlsMode.OFF, join_token=SHARED_TOKEN) as control_plane,
        grpc.aio.insecure_channel(control_plane.admin_address) as channel,
    ):
        nodes, request = node_grpc.NodeServiceStub(channel), node_pb.BanNodeRequest(node_id="eu-1")
        ids = await _credentials(channel, "shared", "gone")
        await credential_grpc.CredentialServiceStub(channel).DeleteCredential(
            credential_pb.DeleteCredentialRequest(name="gone/main"), metadata=BEARER
        )

        first = await nodes.BanNode(request, metadata=BEARER)
        second = await nodes.BanNode(request, metadata=BEARER)

    assert set(first.received_credentials) == {"shared/main", ids["gone/main"]}
    assert second.received_credentials == first.received_credentials


async def test_a_banned_node_that_calls_without_end_delays_no_other_ban(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls share readings of the database: a few, however many they are."""
    question, readings, read = usage_pb.ListReportersRequest(), [0], NodeRoster._read

    async def counted(roster: NodeRoster) -> None:
        readings[0] += 1
        await read(roster)

    identity = await control_plane.joined("eu-1")
    async with node_channel(identity, control_plane) as channel:
        stub = usage_grpc.UsageServiceStub(channel)
        await stub.ListReporters(question)
        await control_plane.ban("eu-1")
        monkeypatch.setattr(NodeRoster, "_read", counted)

        refusals = await asyncio.gather(
            *(refused(stub.ListReporters(question)) for _ in range(200))
        )

    assert {each.code for each in refusals} == {grpc.StatusCode.PERMISSION_DENIED}
    assert readings[0] < 100


async def test_where_nodes_share_a_token_a_banned_name_is_refused(data_dir: Path) -> None:
    async with running(data_dir, tls=TlsMode.OFF, join_token=SHARED_TOKEN) as control_plane:
        api = AdminApi(control_plane.admin_address, OWNER_TOKEN)
        nodes = node_grpc.NodeServiceStub(api.channel)
        async with (
            connected(control_plane.admin_address, SHARED_TOKEN) as node,
            grpc.aio.insecure_channel(control_plane.admin_address) as channel,
        ):
            await node.hello("eu-1")
            await node.follow()
            report = usage_grpc.UsageServiceStub(channel).ReportUsage(
                metadata=(("authorization", f"Bearer {SHARED_TOKEN}"),)
            )
            await report.write(usage_pb.ReportUsageRequest(batch_id=1, node_id="eu-1"))
            await report.read()

            await nodes.BanNode(node_pb.BanNodeRequest(node_id="eu-1"))

            with pytest.raises(grpc.aio.AioRpcError) as of_stream:
                await node.read_until(lambda _message: False, deadline_s=1)
            async with asyncio.timeout(1):
                with pytest.raises(grpc.aio.AioRpcError, match="eu-1 is banned"):
                    await report.read()
        assert of_stream.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with connected(control_plane.admin_address, SHARED_TOKEN) as again:
            with pytest.raises(grpc.aio.AioRpcError, match="banned"):
                await again.hello("eu-1")
        async with connected(control_plane.admin_address, SHARED_TOKEN) as other:
            await other.hello("eu-2")
        await nodes.UnbanNode(node_pb.UnbanNodeRequest(node_id="eu-1"))
        await taken_back(control_plane.admin_address)
        await api.channel.close()


async def taken_back(address: str) -> None:
    """Say Hello as a node whose ban was lifted, until it is heard of."""
    async with asyncio.timeout(2):
        while True:
            async with connected(address, SHARED_TOKEN) as back:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await back.hello("eu-1")
                    return
