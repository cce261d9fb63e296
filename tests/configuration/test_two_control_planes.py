"""Two control planes on one PostgreSQL, with real nodes: a write on one is everywhere at once, and one may die."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc

from tests.configuration.nodes import nodes
from tests.distribution.process import Program, environment_of, program
from tests.rpc.admin_api import AdminApi

REACHES_S = 1.0
MOVES_S = 5.0
ROUNDS = 10


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_write_on_one_reaches_nodes_of_the_other_and_nodes_of_one_that_dies_move_on(
    database_url: str, tmp_path: Path
) -> None:
    one_has = environment_of(tmp_path / "one") | {"TOLLKEEPER_DATABASE_URL": database_url}
    other_has = one_has | {"TOLLKEEPER_DATA_DIR": str(tmp_path / "other")}
    async with program(one_has) as one, program(other_has) as other:
        api_of_one = AdminApi(one.address, one.owner_token)
        api_of_other = AdminApi(other.address, other.owner_token)
        token = one.join_token
        async with (
            nodes(f"{one.address},{other.address}", ["a-1", "a-2"], token) as first,
            nodes(f"{other.address},{one.address}", ["b-1", "b-2"], token) as second,
        ):
            everybody = (first, second)
            for each in everybody:
                await each.until_applied(1)
            for number in range(ROUNDS):
                organization = await api_of_one.create_organization(f"org-{number}")
                written_ns = time.time_ns()
                for each in everybody:
                    await each.until_applied(organization.revision, REACHES_S * 5)
                    for name in each.names:
                        took_s = (each.newest(name)["at_ns"] - written_ns) / 1e9
                        assert took_s <= REACHES_S, name

            fulls = {name: each.newest(name)["fulls"] for each in everybody for name in each.names}
            assert await nodes_of(api_of_one) == {"a-1", "a-2", "b-1", "b-2"}
            killed_at_s = time.monotonic()
            await one.stop(signal.SIGKILL)
            await until_moved(other, api_of_other, {"a-1", "a-2", "b-1", "b-2"})
            assert time.monotonic() - killed_at_s <= MOVES_S

            organization = await api_of_other.create_organization("afterwards")
            for each in everybody:
                await each.until_applied(organization.revision, REACHES_S * 5)
                for name in each.names:
                    assert each.newest(name)["fulls"] == fulls[name]
        await api_of_one.channel.close()
        await api_of_other.channel.close()


async def listed(api: AdminApi) -> list[node_pb.Node]:
    answer = await node_grpc.NodeServiceStub(api.channel).ListNodes(node_pb.ListNodesRequest())
    return list(answer.nodes)


async def nodes_of(api: AdminApi) -> set[str]:
    """Return the nodes that a control plane shows, wherever they are connected; it may take one writing of them."""
    async with asyncio.timeout(8):
        while len(found := {each.node_id for each in await listed(api)}) < 4:
            await asyncio.sleep(0.05)  # polled: nobody tells
    return found


async def until_moved(program: Program, api: AdminApi, names: set[str]) -> None:
    """Wait until all nodes are connected to the control plane that is left."""
    own = {each.control_plane_id for each in await listed(api) if each.node_id == "b-1"}
    async with asyncio.timeout(2 * MOVES_S):
        while {e.node_id for e in await listed(api) if e.control_plane_id in own} != names:
            await asyncio.sleep(0.02)  # polled: nobody tells
