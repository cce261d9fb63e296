"""What a data plane does when the stream, the control plane or itself is at fault."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.channels import check_address
from dataplane.control.current import CurrentSnapshot
from dataplane.control.transfers import Contents
from dataplane.control.watch import Node, Watch
from tests.control.configurations import EPOCH, configuration, key, position_of
from tests.control.scripted import ScriptedControlPlane, full, revocation


@asynccontextmanager
async def _serving(servicer: pb_grpc.ConfigServiceServicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_ConfigServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def _watching(
    *addresses: str, on_applied: Callable[[Contents], None] = lambda _: None
) -> AsyncIterator[CurrentSnapshot]:
    current = CurrentSnapshot()
    node = Node("node-1", "0.1.0", "join-token")
    watch = Watch(addresses, node, current, lambda: 1_000, lambda: 0, on_applied)
    task = asyncio.create_task(watch.run())
    try:
        yield current
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "address", ["control.example:50051", "10.0.0.1:50051", "0.0.0.0:50051", "[2001:db8::1]:1", ":1"]
)
def test_the_node_token_leaves_the_machine_only_under_tls(address: str) -> None:
    with pytest.raises(ValueError, match="loopback") as caught:
        check_address(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "localhost:50051", "[::1]:50051", "127.9.9.9:1"]
)
def test_the_loopback_needs_no_tls(address: str) -> None:
    check_address(address)


async def test_a_control_plane_that_is_away_costs_no_more_than_a_moment() -> None:
    with socket.socket() as nobody:
        # Bound and never listening: connections are refused.
        nobody.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
        control_plane = ScriptedControlPlane()
        async with _serving(control_plane) as address, _watching(away, address):
            assert (await control_plane.hear("hello", 2.0)).hello.node_id == "node-1"
            control_plane.say(None)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        control_plane = ScriptedControlPlane()
        async with _serving(control_plane) as address, _watching(address):
            assert (await control_plane.hear("hello", 2.0)).hello.node_id == "node-1"
            control_plane.say(None)


class _Refusing(pb_grpc.ConfigServiceServicer):
    """Knows no node."""

    def __init__(self) -> None:
        self.calls = 0

    async def StreamConfig(  # noqa: N802 - the aio form of gRPC's name
        self,
        request_iterator: AsyncIterator[pb.StreamConfigRequest],
        context: grpc.aio.ServicerContext[pb.StreamConfigRequest, pb.StreamConfigResponse],
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        self.calls += 1
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such node")
        yield pb.StreamConfigResponse()


async def test_a_refused_token_is_named_and_not_hammered_with() -> None:
    refusing = _Refusing()
    with capture_logs() as logs:
        async with _serving(refusing) as address, _watching(address):
            await _until(lambda: any(each["event"] == "node_token_refused" for each in logs))
            started_at = time.monotonic()
            await _until(lambda: refusing.calls > 1 or time.monotonic() - started_at > 1)
    assert refusing.calls == 1
    assert "join-token" not in repr(logs)


async def test_a_fault_of_ours_ends_the_stream_and_not_the_watch() -> None:
    faults = iter([ZeroDivisionError("a fault"), None])

    def applied(_: Contents) -> None:
        if (fault := next(faults)) is not None:
            raise fault

    control_plane = ScriptedControlPlane()
    with capture_logs() as logs:
        async with (
            _serving(control_plane) as address,
            _watching(address, on_applied=applied) as current,
        ):
            control_plane.say(*full(1, configuration(1), 1))
            await control_plane.hear("hello")
            await control_plane.hear("hello")
            # The server may still hold the ended stream: it takes one of the two.
            control_plane.say(None, *full(1, configuration(2), 2))
            await _until(lambda: current.latest and current.latest.position.revision == 2)
            control_plane.say(None)
    faulty = [each for each in logs if each["event"] == "config_stream_failed"]
    assert len(faulty) == 1
    assert faulty[0]["exc_info"]


async def test_a_revocation_of_something_unknown_is_not_called_in_force() -> None:
    strange = pb.StreamConfigResponse(
        revocation=pb.Revocation(
            revocation_id="strange",
            revision=2,
            config_epoch=EPOCH,
            subject=resources_pb2.ResourceRef(kind=99, id="team"),  # type: ignore[arg-type] # newer
        )
    )
    control_plane = ScriptedControlPlane()
    async with _serving(control_plane) as address, _watching(address):
        control_plane.say(strange, revocation("key000000001", 3))
        ack = (await control_plane.hear("revocation_ack")).revocation_ack
        control_plane.say(None)
    assert ack.revocation_id == "key000000001:3"


async def test_an_acknowledgement_stays_small_whatever_is_set_aside() -> None:
    resources = [*configuration(0), *(key(number, key_sha256=b"") for number in range(3_000))]
    control_plane = ScriptedControlPlane()
    async with _serving(control_plane) as address, _watching(address):
        control_plane.say(*full(1, resources, 1))
        ack = (await control_plane.hear("ack", 10)).ack
        control_plane.say(None)
    assert len(ack.quarantined) == 1_000
    assert ack.applied == position_of(resources, 1)
