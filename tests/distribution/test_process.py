"""A control plane as a process: how it starts, stops, dies and comes back."""

import json
import signal
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import (  # type: ignore[import-untyped] # has no types
    health_pb2,
    health_pb2_grpc,
)
from tollkeeper.admin.v1 import node_service_pb2 as nodes_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as nodes_grpc
from tollkeeper.admin.v1 import organization_service_pb2 as organizations_pb
from tollkeeper.admin.v1 import organization_service_pb2_grpc as organizations_grpc
from tollkeeper.config.v1 import resources_pb2
from tollkeeper.usage.v1 import usage_service_pb2 as usage_pb
from tollkeeper.usage.v1 import usage_service_pb2_grpc as usage_grpc

from controlplane.domain.service import ServiceDefaults
from tests.distribution.node import connected
from tests.distribution.process import Program, environment_of, launch, owner_token, program

SERVICE = (resources_pb2.RESOURCE_KIND_SERVICE, "service")


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def create_organization(running: Program, name: str) -> int:
    """Create one and return the revision."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        created = await organizations_grpc.OrganizationServiceStub(channel).CreateOrganization(
            organizations_pb.CreateOrganizationRequest(
                organization=organizations_pb.Organization(name=name)
            ),
            metadata=bearer(running.owner_token),
            timeout=5,
        )
    return created.revision


async def organizations_of(running: Program, revision: int) -> list[str]:
    """Return the names of organizations as a node gets them at `revision`."""
    async with connected(running.address, running.join_token) as node:
        await node.hello()
        received = await node.follow_to(revision)
    return sorted(
        resources_pb2.Organization.FromString(each.payload).name
        for each in received.resources.values()
        if each.kind == resources_pb2.RESOURCE_KIND_ORGANIZATION
    )


async def test_it_serves_administrators_nodes_and_health_checks(tmp_path: Path) -> None:
    async with program(environment_of(tmp_path)) as running:
        await create_organization(running, "acme")
        async with (
            connected(running.address, running.join_token) as node,
            grpc.aio.insecure_channel(running.address) as channel,
        ):
            await node.hello("node-7")
            received = await node.follow()
            service = resources_pb2.Service.FromString(received.resources[SERVICE].payload)
            listed = await nodes_grpc.NodeServiceStub(channel).ListNodes(
                nodes_pb.ListNodesRequest(), metadata=bearer(running.owner_token), timeout=5
            )
            checked = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=5
            )

        assert [each.capacity for each in service.default_user_limits] == [
            each.capacity for each in DEFAULTS.user_limits
        ]
        assert [each.node_id for each in listed.nodes] == ["node-7"]
        assert listed.current == received.begin.to
        for token in ("", "x" * 48):
            async with connected(running.address, token) as stranger:
                assert await stranger.ended() == grpc.StatusCode.UNAUTHENTICATED
        assert checked.status == health_pb2.HealthCheckResponse.SERVING


DEFAULTS = ServiceDefaults(
    default_daily_requests=1_000,
    default_daily_tokens=100_000,
    default_monthly_spend_nanousd=50 * 10**9,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_time_with_streams_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with (
        program(environment_of(tmp_path)) as running,
        connected(running.address, running.join_token) as node,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        await node.hello()
        await node.follow()
        reporting: grpc.aio.StreamStreamCall[
            usage_pb.ReportUsageRequest, usage_pb.ReportUsageResponse
        ] = usage_grpc.UsageServiceStub(channel).ReportUsage(metadata=bearer(running.join_token))
        await reporting.write(usage_pb.ReportUsageRequest(batch_id=1))
        await reporting.read()
        begun = time.monotonic()

        errors = await running.stop(number)

        assert running.process.returncode == 0
        assert time.monotonic() - begun < 3
        assert not (tmp_path / "controlplane.ready").exists()
        assert await node.ended() == grpc.StatusCode.UNAVAILABLE
        for line in errors.splitlines():
            assert json.loads(line)["level"] in ("info", "warning")
        for secret in (running.join_token, running.owner_token):
            assert secret not in errors


async def test_it_survives_its_own_death(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    async with program(environment) as running:
        await create_organization(running, "acme")
        await running.stop(signal.SIGKILL)
    assert (tmp_path / "controlplane.ready").exists()

    # The owner's token may be another one each time; it takes the place of the first.
    environment["TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN"] = owner_token()
    async with program(environment) as again:
        revision = await create_organization(again, "globex")
        assert await organizations_of(again, revision) == ["acme", "globex"]


async def refusal(environment: dict[str, str]) -> str:
    """Start with a bad environment; return the one line on stderr."""
    process = await launch(environment)
    output, errors = await process.communicate()
    assert process.returncode == 2
    assert output == b""
    (line,) = errors.decode().splitlines()
    return line


async def test_a_bad_setting_stops_the_start_with_one_line(tmp_path: Path) -> None:
    environment = environment_of(tmp_path) | {
        "TOLLKEEPER_DAILY_REQESTS": "5",
        "TOLLKEEPER_JOIN_TOKEN": "short",
    }

    line = await refusal(environment)

    assert "TOLLKEEPER_DAILY_REQESTS is not a setting" in line
    assert "TOLLKEEPER_JOIN_TOKEN must have at least 32 characters" in line


async def test_a_taken_port_stops_the_start_with_one_line(tmp_path: Path) -> None:
    async with program(environment_of(tmp_path / "one")) as running:
        port = running.address.rpartition(":")[2]
        environment = environment_of(tmp_path / "two") | {"TOLLKEEPER_ADMIN_PORT": port}

        errors = await last_line(environment)

    assert f"port {port} of 127.0.0.1 cannot be used" in errors
    assert not (tmp_path / "two" / "controlplane.ready").exists()


async def last_line(environment: dict[str, str]) -> str:
    """Start with something that shows only after the settings; return the last line on stderr."""
    process = await launch(environment)
    _, errors = await process.communicate()
    assert process.returncode == 2
    return errors.decode().splitlines()[-1]
