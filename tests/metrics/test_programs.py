"""Both programs together: waits, health and metrics as their users see them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import organization_service_pb2 as organization_pb

from dataplane import embedded_redis
from tests.distribution.node import eventually
from tests.distribution.process import Program, environment_of, program
from tests.rpc.admin_api import AdminApi

START_S = 20.0


@dataclass
class DataPlane:
    process: asyncio.subprocess.Process
    ready: dict[str, Any]  # Any: JSON

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ready['metrics_port']}/metrics"


@asynccontextmanager
async def data_plane(environment: Mapping[str, str]) -> AsyncIterator[DataPlane]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    ready = Path(environment["TOLLKEEPER_DATA_DIR"]) / "dataplane.ready"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dataplane"),
        env={**inherited, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: ready.exists() or process.returncode is not None, START_S)
        assert process.returncode is None
        yield DataPlane(process, json.loads(ready.read_text("utf-8")))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        trust_env=False,
        timeout=10,
        verify=False,  # noqa: S501 - no TLS here
    ) as made:
        yield made


async def scraped(http: httpx.AsyncClient, url: str) -> dict[str, float]:
    """Return the samples that have no labels but `intent`, by name."""
    answer = await http.get(url)
    assert answer.status_code == 200
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def created(api: AdminApi, name: str) -> organization_pb.Organization:
    """Create an organization and wait until the nodes have it."""
    return await api.organizations.CreateOrganization(
        organization_pb.CreateOrganizationRequest(
            organization=organization_pb.Organization(name=name),
            wait_for_propagation=Duration(seconds=10),
        )
    )


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Program]:
    environment = environment_of(tmp_path / "controlplane")
    async with program({**environment, "TOLLKEEPER_METRICS_PORT": "0"}) as started:
        yield started


@pytest.fixture
async def node(running: Program, tmp_path: Path) -> AsyncIterator[DataPlane]:
    redis = embedded_redis.start(tmp_path / "redis")
    try:
        async with data_plane(
            {
                "TOLLKEEPER_DATA_DIR": str(tmp_path / "dataplane"),
                "TOLLKEEPER_PORT": "0",
                "TOLLKEEPER_METRICS_PORT": "0",
                "TOLLKEEPER_REDIS_URL": redis.url,
                "TOLLKEEPER_CONTROL_PLANE": running.address,
                "TOLLKEEPER_JOIN_TOKEN": running.join_token,
                "TOLLKEEPER_NODE_ID": "node-1",
            }
        ) as started:
            yield started
    finally:
        redis.stop()


async def test_a_change_is_waited_for_listed_and_measured(
    running: Program, node: DataPlane
) -> None:
    api = AdminApi(running.address, running.owner_token)
    file = Path(running.environment["TOLLKEEPER_DATA_DIR"]) / "controlplane.ready"
    metrics_url = f"http://{json.loads(file.read_text('utf-8'))['metrics_address']}/metrics"
    health_url = f"{node.ready['base_url']}/health/ready"
    async with client() as http:
        async with asyncio.timeout(START_S):
            while (await http.get(health_url)).status_code != 200:
                await asyncio.sleep(0.05)

        change = await created(api, "acme")

        propagation = change.propagation
        assert (propagation.revision, list(propagation.missing)) == (change.revision, [])
        assert [each.node for each in propagation.applied] == ["node-1"]

        ready = (await http.get(health_url)).json()
        assert ready["configuration"]["revision"] == change.revision
        assert ready["configuration"]["staleness"] == "fresh"
        assert ready["configuration"]["quarantined"] == 0
        assert ready["control_plane"]["is_connected"] is True
        assert ready["control_plane"]["heard_ms_ago"] < 15_000
        assert (ready["redis"], ready["breakers"]) == ("ok", {"redis": "closed"})
        assert "warning" not in ready

        channel = grpc.aio.insecure_channel(running.address)
        listing = channel.unary_unary(
            "/tollkeeper.admin.v1.NodeService/ListNodes",
            request_serializer=node_pb.ListNodesRequest.SerializeToString,
            response_deserializer=node_pb.ListNodesResponse.FromString,
        )
        nodes: node_pb.ListNodesResponse = await listing(
            node_pb.ListNodesRequest(),
            metadata=(("authorization", f"Bearer {running.owner_token}"),),
            timeout=10,
        )
        await channel.close()
        (listed,) = nodes.nodes
        assert listed.applied == listed.wanted == nodes.current
        assert (listed.staleness, listed.lag_ms) == (node_pb.STALENESS_FRESH, 0)
        assert listed.control_plane_id == ready["control_plane"]["id"]
        assert list(listed.organizations) == []

        shown = await scraped(http, metrics_url)
        assert shown["tollkeeper_config_revision"] == change.revision
        assert shown["tollkeeper_nodesfresh"] == 1
        assert shown["tollkeeper_propagation_seconds_count"] == 1
        assert shown["tollkeeper_config_publish_seconds_count"] >= 1
        assert shown["tollkeeper_config_published_age_seconds"] < 60
        assert shown["tollkeeper_config_transfer_bytes_total"] > 0

        shown = await scraped(http, node.metrics_url)
        assert shown["tollkeeper_config_revision"] == change.revision
        assert shown["tollkeeper_config_resourcesorganization"] == 1
        assert shown["tollkeeper_config_apply_seconds_count"] >= 1
        assert shown["tollkeeper_config_staleness"] == 0
        assert shown["tollkeeper_config_connected"] == 1
        assert shown["tollkeeper_limits_stateclosed"] == 1
    await api.channel.close()


async def test_a_data_plane_without_its_control_plane_stays_ready(
    running: Program, node: DataPlane
) -> None:
    health_url = f"{node.ready['base_url']}/health/ready"
    async with client() as http:
        async with asyncio.timeout(START_S):
            while (await http.get(health_url)).status_code != 200:
                await asyncio.sleep(0.05)
        running.process.kill()
        await running.process.wait()

        async with asyncio.timeout(START_S):
            while (await scraped(http, node.metrics_url))["tollkeeper_config_connected"]:
                await asyncio.sleep(0.05)

        answer = await http.get(health_url)
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert answer.json()["control_plane"]["is_connected"] is False


async def test_without_the_setting_there_is_no_port(tmp_path: Path) -> None:
    async with program(environment_of(tmp_path)):
        ready = json.loads((tmp_path / "controlplane.ready").read_text("utf-8"))

    assert ready["metrics_address"] is None


async def test_a_data_plane_that_never_had_a_configuration_is_not_ready(tmp_path: Path) -> None:
    redis = embedded_redis.start(tmp_path / "redis")
    try:
        async with (
            data_plane(
                {
                    "TOLLKEEPER_DATA_DIR": str(tmp_path / "dataplane"),
                    "TOLLKEEPER_PORT": "0",
                    "TOLLKEEPER_REDIS_URL": redis.url,
                    "TOLLKEEPER_CONTROL_PLANE": "127.0.0.1:1",
                    "TOLLKEEPER_JOIN_TOKEN": "j" * 40,
                }
            ) as started,
            client() as http,
        ):
            answer = await http.get(f"{started.ready['base_url']}/readyz")
            live = await http.get(f"{started.ready['base_url']}/health")
    finally:
        redis.stop()

    assert (answer.status_code, answer.json()["code"]) == (503, "configuration_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["control_plane"] == {
        "id": None,
        "is_connected": False,
        "heard_ms_ago": None,
    }
    assert (live.status_code, live.json()["status"]) == (200, "healthy")
    assert started.ready["metrics_port"] is None
