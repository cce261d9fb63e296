"""A control plane that comes back has all its nodes back soon, and does not need more memory for them."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc

from tests.configuration.large_database import prepared
from tests.configuration.nodes import NodesProgram, nodes
from tests.configuration.proxy import Proxy, proxying
from tests.distribution.process import Program, environment_of, program
from tests.rpc.admin_api import AdminApi

BACK_S = 15.0
MAX_RSS_BYTES = 500 * 1024 * 1024


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    nodes: int
    processes: int
    keys: int
    start_s: float


SIZES = [
    pytest.param(Size(nodes=6, processes=2, keys=300, start_s=30), id="small"),
    pytest.param(
        Size(nodes=50, processes=5, keys=100_000, start_s=400), id="full", marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize("size", SIZES)
async def test_nodes_are_back_soon_after_their_control_plane(size: Size, tmp_path: Path) -> None:
    environment = environment_of(tmp_path / "cp")
    (tmp_path / "cp").mkdir()
    url = f"sqlite+aiosqlite:///{tmp_path / 'large.sqlite'}"
    environment["TOLLKEEPER_DATABASE_URL"] = url
    revision = await prepared(url, size.keys)
    async with proxying() as proxy, program(environment, size.start_s) as control_plane:
        proxy.point_at(control_plane.address)
        async with connected(proxy, control_plane, size) as programs:
            for each in programs:
                await each.until_applied(revision, size.start_s)
            first_rss_bytes = peak_rss_bytes(control_plane)
            await control_plane.stop(signal.SIGKILL)
            proxy.point_at(None)
            began_s = time.monotonic()
            async with program(environment, size.start_s) as restarted:
                served_s = time.monotonic() - began_s
                proxy.point_at(restarted.address)
                await until_all_are_current(restarted, size.nodes)
                back_s = time.monotonic() - began_s
                rss_bytes = peak_rss_bytes(restarted)
    print(  # noqa: T201 - shown by -s
        f"serves after {served_s:.1f} s, {size.nodes} nodes current after {back_s:.1f} s;"
        f" control plane {rss_bytes >> 20} MiB, and {first_rss_bytes >> 20} MiB"
        " when all were sent everything"
    )
    assert back_s <= BACK_S
    assert max(rss_bytes, first_rss_bytes) <= MAX_RSS_BYTES


@asynccontextmanager
async def connected(
    proxy: Proxy, control_plane: Program, size: Size
) -> AsyncIterator[list[NodesProgram]]:
    """Run the nodes, in a few processes."""
    names = [f"node-{number}" for number in range(size.nodes)]
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                nodes(proxy.address, names[number :: size.processes], control_plane.join_token)
            )
            for number in range(size.processes)
        ]


async def until_all_are_current(control_plane: Program, count: int) -> None:
    """Wait until so many nodes are listed, each with the newest position."""
    api = AdminApi(control_plane.address, control_plane.owner_token)
    stub = node_grpc.NodeServiceStub(api.channel)
    async with asyncio.timeout(60):
        while True:
            answer = await stub.ListNodes(node_pb.ListNodesRequest())
            if sum(each.applied == answer.current for each in answer.nodes) == count:
                break
            await asyncio.sleep(0.05)  # polled: nobody tells
    await api.channel.close()


def peak_rss_bytes(control_plane: Program) -> int:
    """Return the most memory that a program ever had."""
    status = Path(f"/proc/{control_plane.process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
