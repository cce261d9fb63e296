"""What a data plane does when the stream, the control plane or itself is at fault."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc
from tollkeeper.config.v1 import resources_pb2

from dataplane.control.channels import check_address
from dataplane.control.compile import Compiled, Compiler
from dataplane.control.holdings import Change, Holdings
from dataplane.control.watch import Condition
from tests.control.configurations import EPOCH, configuration, key, position_of
from tests.control.scripted import ScriptedControlPlane, full, revocation
from tests.control.watching import serving, until, watching


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
        async with serving(control_plane) as address, watching(away, address):
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
        async with serving(control_plane) as address, watching(address):
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
        async with serving(refusing) as address, watching(address):
            await until(lambda: any(each["event"] == "node_token_refused" for each in logs))
            started_at = time.monotonic()
            await until(lambda: refusing.calls > 1 or time.monotonic() - started_at > 1)
    assert refusing.calls == 1
    assert "join-token" not in repr(logs)


async def test_a_fault_of_ours_ends_the_stream_and_not_the_watch() -> None:
    faults = iter([ZeroDivisionError("a fault")])

    def unreported() -> int:
        for fault in faults:
            raise fault
        return 3

    control_plane = ScriptedControlPlane(heartbeat_ms=50)
    condition = Condition(unreported_records=unreported)
    with capture_logs() as logs:
        async with serving(control_plane) as address, watching(address, condition=condition):
            beat = (await control_plane.hear("heartbeat")).heartbeat
            control_plane.say(None, None)
    faulty = [each for each in logs if each["event"] == "config_stream_failed"]
    assert len(faulty) == 1
    assert faulty[0]["exc_info"]
    assert beat.unreported_records == 3
    assert len(control_plane.tokens) == 2


class _Tripping:
    """A compiler with a fault, which one configuration brings out."""

    def __init__(self) -> None:
        self._compiler = Compiler()

    async def compile(self, holdings: Holdings, change: Change, applied_at_ms: int) -> Compiled:
        if change.position.revision == 2:
            raise ZeroDivisionError("a fault")
        return await self._compiler.compile(holdings, change, applied_at_ms)

    def commit(self, compiled: Compiled) -> None:
        self._compiler.commit(compiled)


async def test_a_configuration_that_trips_the_node_is_refused_and_the_stream_goes_on() -> None:
    with capture_logs() as logs:
        async with watching(compiler=_Tripping()) as it:
            it.control_plane.say(*full(1, configuration(1), 1))
            await it.control_plane.hear("ack")
            it.control_plane.say(*full(2, configuration(2), 2))
            nack = (await it.control_plane.hear("nack")).nack
            it.control_plane.say(*full(3, configuration(3), 3))
            ack = (await it.control_plane.hear("ack")).ack
    assert (nack.reason, nack.applied.revision) == (pb.NACK_REASON_INVALID, 1)
    assert "a fault" not in nack.problems[0].replace("a fault of the node", "")
    assert (ack.applied.revision, len(it.control_plane.tokens)) == (3, 1)
    assert any(each["event"] == "config_compilation_failed" for each in logs)


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
    async with serving(control_plane) as address, watching(address):
        control_plane.say(strange, revocation("key000000001", 3))
        ack = (await control_plane.hear("revocation_ack")).revocation_ack
        control_plane.say(None)
    assert ack.revocation_id == "key000000001:3"


async def test_an_acknowledgement_stays_small_whatever_is_set_aside() -> None:
    resources = [*configuration(0), *(key(number, key_sha256=b"") for number in range(3_000))]
    control_plane = ScriptedControlPlane()
    async with serving(control_plane) as address, watching(address):
        control_plane.say(*full(1, resources, 1))
        ack = (await control_plane.hear("ack", 10)).ack
        control_plane.say(None)
    assert len(ack.quarantined) == 1_000
    assert ack.applied == position_of(resources, 1)


def senders() -> list[str]:
    """Return the tasks that wait for something to be said on a stream."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return [name for name in names if "consume_request_iterator" in name]


async def test_streams_that_were_lost_leave_nothing_behind() -> None:
    control_plane = ScriptedControlPlane()
    async with serving(control_plane) as address, watching(address) as it:
        for number in range(5):
            await control_plane.hear("hello", 5.0)
            await until(lambda: it.watch.figures.is_connected)
            control_plane.say(None)
            await until(lambda: not it.watch.figures.is_connected)
            assert len(senders()) <= 1, number
