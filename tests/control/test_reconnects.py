"""Nodes come back: after goodbyes, restarts, refusals, and to other control planes."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from structlog.testing import capture_logs
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from dataplane.control import session
from dataplane.control.compile import Compiled, Compiler
from dataplane.control.holdings import Change, Holdings
from dataplane.control.reconnects import Ending, Reconnects
from tests.control.configurations import configuration, position_of
from tests.control.scripted import ScriptedControlPlane, delta, full, goodbye, none, revocation
from tests.control.watching import serving, until, watching


async def test_after_a_goodbye_the_node_asks_the_next_control_plane_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delays: list[float] = []
    delay_seconds = Reconnects.delay_seconds

    def delay(reconnects: Reconnects, ending: Ending, held_seconds: float) -> float:
        delays.append(delay_seconds(reconnects, ending, held_seconds))
        return delays[-1]

    monkeypatch.setattr(Reconnects, "delay_seconds", delay)
    first, second = ScriptedControlPlane(name="cp-1"), ScriptedControlPlane(name="cp-2")
    async with serving(first) as one, serving(second) as other, watching(one, other) as it:
        first.say(*full(1, configuration(3), 5))
        await first.hear("ack")

        first.say(goodbye())
        hello = (await second.hear("hello")).hello

        assert hello.applied == position_of(configuration(3), 5)
        await until(lambda: it.watch.figures.control_plane_id == "cp-2")
        assert it.watch.figures.reconnects_total == 1
        # Left in an orderly way: the first one has heard all that was said.
        await until(lambda: first.finished == 1)
        assert delays == [0.0]
        second.say(None)


async def test_before_it_leaves_a_node_answers_what_it_began() -> None:
    async with watching() as it:
        it.disk.is_working.clear()
        it.control_plane.say(
            *full(1, configuration(300), 5),
            revocation("key000000001", 6),
            goodbye(pb.GOODBYE_REASON_STOPPING),
        )
        await it.control_plane.hear("ack")
        it.disk.is_working.set()
        answer = (await it.control_plane.hear("revocation_ack")).revocation_ack
        again = (await it.control_plane.hear("hello")).hello

    assert answer.revocation_id == "key000000001:6"
    assert again.applied.revision == 5


class _Gated:
    """A compiler that waits for a test."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.begun = 0
        self._compiler = Compiler()

    async def compile(self, holdings: Holdings, change: Change, applied_at_ms: int) -> Compiled:
        """Compile when the gate is open."""
        self.begun += 1
        await self.is_open.wait()
        return await self._compiler.compile(holdings, change, applied_at_ms)

    def commit(self, compiled: Compiled) -> None:
        """Take over what was compiled."""
        self._compiler.commit(compiled)


async def test_before_it_leaves_a_node_puts_in_force_what_it_received() -> None:
    gated = _Gated()
    async with watching(compiler=gated) as it:
        it.control_plane.say(*full(1, configuration(3), 5), goodbye())
        await until(lambda: gated.begun)
        with pytest.raises(TimeoutError):
            await until(lambda: it.control_plane.finished, 0.5)
        gated.is_open.set()
        assert (await it.control_plane.hear("ack")).ack.applied.revision == 5


async def test_of_transfers_that_wait_the_newest_counts_and_each_is_answered() -> None:
    gated = _Gated()
    async with watching(compiler=gated) as it:
        it.control_plane.say(*full(1, configuration(1), 1))
        await until(lambda: gated.begun)
        it.control_plane.say(*full(2, configuration(2), 2), *full(3, configuration(3), 3))
        nack = (await it.control_plane.hear("nack")).nack
        gated.is_open.set()
        acks = [(await it.control_plane.hear("ack")).ack for _ in range(2)]
    assert (nack.transfer_id, nack.reason) == (2, pb.NACK_REASON_POSITION)
    assert [(each.transfer_id, each.applied.revision) for each in acks] == [(1, 1), (3, 3)]


async def test_a_node_that_cannot_finish_leaves_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "_LEAVE_SECONDS", 0.1)
    async with watching() as it:
        it.disk.is_working.clear()
        it.control_plane.say(revocation("key000000001", 6), goodbye())
        await it.control_plane.hear("hello")
        await it.control_plane.hear("hello")


async def test_a_restarted_control_plane_is_followed_within_moments() -> None:
    first, second = ScriptedControlPlane(), ScriptedControlPlane()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    async with watching(f"127.0.0.1:{port}") as it:
        async with serving(first, port):
            first.say(*full(1, configuration(3), 5))
            await first.hear("ack", 10)
            first.say(None)
        await until(lambda: not it.watch.figures.is_connected)
        seen = it.current.get()
        async with serving(second, port):
            hello = (await second.hear("hello", 10)).hello
            second.say(*none(1, position_of(configuration(3), 5)))
            await second.hear("ack")
            second.say(None)
    assert hello.applied.revision == 5
    assert seen.position.revision == 5
    assert it.watch.figures.transfers_total == {"none": 1, "delta": 0, "full": 1}


class _Refusing(pb_grpc.ConfigServiceServicer):
    """Ends every stream with one status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code
        self.calls = 0

    async def StreamConfig(  # noqa: N802 - the aio form of gRPC's name
        self,
        request_iterator: AsyncIterator[pb.StreamConfigRequest],
        context: grpc.aio.ServicerContext[pb.StreamConfigRequest, pb.StreamConfigResponse],
    ) -> AsyncIterator[pb.StreamConfigResponse]:
        """Refuse."""
        self.calls += 1
        await context.abort(self.code, "not here")
        yield pb.StreamConfigResponse()


async def test_a_control_plane_that_is_behind_sends_the_node_to_the_next_one() -> None:
    behind, good = _Refusing(grpc.StatusCode.UNAVAILABLE), ScriptedControlPlane()
    async with serving(behind) as one, serving(good) as other, watching(one, other):
        started_at = time.monotonic()
        await good.hear("hello")
        assert time.monotonic() - started_at < 2
        good.say(None)
    assert behind.calls == 1


async def test_a_banned_node_asks_rarely() -> None:
    banning = _Refusing(grpc.StatusCode.PERMISSION_DENIED)
    with capture_logs() as logs:
        async with serving(banning) as address, watching(address):
            await until(lambda: any(each["event"] == "node_token_refused" for each in logs))
            started_at = time.monotonic()
            await until(lambda: banning.calls > 1 or time.monotonic() - started_at > 0.5)
    assert banning.calls == 1


_LOST, _GOODBYE = Ending.LOST, Ending.GOODBYE


def _delays(addresses: int, *endings: tuple[Ending, float]) -> list[float]:
    reconnects = Reconnects(tuple(map(str, range(addresses))))
    return [reconnects.delay_seconds(*each) for each in endings]


def test_delays_grow_to_a_second_and_no_further() -> None:
    for _ in range(50):
        delays = _delays(1, *[(_LOST, 0.0)] * 20)
        longest = [0.2, 0.4, 0.8, *[1.0] * 17]
        assert all(0.1 <= each <= most for each, most in zip(delays, longest, strict=True))


def test_all_addresses_are_tried_before_a_node_waits() -> None:
    for _ in range(50):
        *quick, slow = _delays(3, *[(_LOST, 0.0)] * 3)
        assert max(quick) <= 0.1 <= slow <= 0.2


def test_a_stream_that_held_was_no_failure() -> None:
    for _ in range(50):
        assert _delays(1, *[(_LOST, 0.0)] * 9, (_LOST, 5.0))[-1] <= 0.2


def test_goodbyes_that_follow_each_other_are_failures() -> None:
    first, second, later = _delays(1, (_GOODBYE, 0.0), (_GOODBYE, 0.0), (_GOODBYE, 5.0))
    assert (first, later) == (0.0, 0.0)
    assert second >= 0.1


def test_refusals_are_met_with_patience() -> None:
    refused, banned = _delays(1, (Ending.REFUSED, 0.0), (Ending.BANNED, 0.0))
    assert 1 <= refused <= 10 <= banned <= 30


def test_addresses_are_taken_in_turn() -> None:
    reconnects = Reconnects(("a", "b"))
    assert [reconnects.address() for _ in range(3)] == ["a", "b", "a"]


async def test_a_control_plane_of_the_first_version_is_followed() -> None:
    async with watching() as it:
        it.control_plane.protocol_version = 1
        it.control_plane.say(*full(1, configuration(3), 5), revocation("key000000001", 6))
        await it.control_plane.hear("ack")
        it.control_plane.say(*none(2, position_of(configuration(3), 6)))
        ack = (await it.control_plane.hear("ack")).ack
        assert (ack.applied.revision, it.watch.figures.protocol_version) == (6, 1)


async def test_what_a_newer_control_plane_says_besides_is_skipped() -> None:
    # Field 111 of the message, and of a heartbeat: nobody knows them yet.
    unknown = pb.StreamConfigResponse.FromString(b"\xfa\x06\x03abc")
    strange = pb.StreamConfigResponse(
        heartbeat=pb.Heartbeat.FromString(b"\xfa\x06\x03abc"),
    )
    async with watching() as it:
        it.control_plane.protocol_version = 7
        begin, first, second, end = full(1, configuration(3), 5)
        it.control_plane.say(unknown, begin, unknown, first, strange, second, unknown, end)
        await it.control_plane.hear("ack")
        assert len(it.control_plane.tokens) == 1
        assert (it.revision, it.watch.figures.protocol_version) == (5, 2)


async def test_a_second_beginning_voids_the_first() -> None:
    async with watching() as it:
        void = full(1, configuration(9), 4)
        it.control_plane.say(*void[:2], *full(2, configuration(3), 5), *void[2:])
        ack = (await it.control_plane.hear("ack")).ack
        nack = (await it.control_plane.hear("nack")).nack
        assert (ack.transfer_id, nack.transfer_id) == (2, 1)
        assert it.revision == 5


async def test_a_beginning_that_is_refused_voids_what_was_running_too() -> None:
    begin, first, second, end = full(1, configuration(3), 5)
    large = full(2, configuration(3), 6)[0]
    large.transfer_begin.resource_count = 1_000_001
    async with watching() as it:
        it.control_plane.say(begin, first, large, second, end)
        refused = [(await it.control_plane.hear("nack")).nack.transfer_id for _ in range(2)]
        assert (refused, it.revision) == ([2, 1], -1)


async def test_what_is_announced_too_large_is_refused_before_it_is_sent() -> None:
    begin = full(1, configuration(3), 5)[0]
    begin.transfer_begin.resource_count = 1_000_001
    async with watching() as it:
        it.control_plane.say(begin)
        nack = (await it.control_plane.hear("nack")).nack
        it.control_plane.say(*full(1, configuration(3), 5)[1:], *full(2, configuration(3), 5))
        ack = (await it.control_plane.hear("ack")).ack
    assert (nack.transfer_id, nack.reason, ack.transfer_id) == (1, pb.NACK_REASON_GUARD, 2)
    assert it.watch.figures.nacks_total["guard"] == 1
    assert sum(it.watch.figures.nacks_total.values()) == 1


async def test_transfers_that_come_unasked_are_all_answered_and_the_newest_counts() -> None:
    count = 12
    async with watching() as it:
        for number in range(1, count + 1):
            it.control_plane.say(*full(number, configuration(40 + number), number))
        answered: dict[int, str | None] = {}
        while len(answered) < count:
            message = await it.control_plane.heard.get()
            for answer in (message.ack, message.nack):
                if answer.transfer_id:
                    answered[answer.transfer_id] = message.WhichOneof("message")
        assert (answered[count], it.revision) == ("ack", count)


async def test_a_request_keeps_the_snapshot_that_it_began_with_and_each_is_whole() -> None:
    async with watching() as it:
        it.control_plane.say(*full(1, configuration(5), 5))
        await it.control_plane.hear("ack")
        seen = it.current.get()
        to = position_of(configuration(6), 6)
        [new] = configuration(6)[len(configuration(5)) :]
        it.control_plane.say(*delta(2, position_of(configuration(5), 5), to, [new], []))
        ack = (await it.control_plane.hear("ack")).ack
        assert (len(seen.keys_by_sha256), seen.position.revision) == (5, 5)
        assert (len(it.current.get().keys_by_sha256), it.revision) == (6, 6)
        assert ack.apply_ms >= 0
        figures = it.watch.figures
        assert figures.transfers_total == {"none": 0, "delta": 1, "full": 1}
        assert figures.transfer_bytes_total > 500
        assert figures.applied_at_ms > 0
        assert figures.heard_at is not None


async def test_the_newest_revision_is_known_from_heartbeats() -> None:
    beat = pb.Heartbeat(position=position_of(configuration(1), 77))
    async with watching() as it:
        it.control_plane.say(pb.StreamConfigResponse(heartbeat=beat))
        await until(lambda: it.watch.figures.known_revision == 77)
        assert it.watch.figures.known_epoch == "epoch-1"


class _Raw(grpc.GenericRpcHandler):
    """A control plane that says bytes, one list of them per stream."""

    def __init__(self, *streams: list[bytes]) -> None:
        self._streams = iter(streams)
        self.calls = 0

    def service(self, handler_call_details: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Serve any method."""
        return grpc.stream_stream_rpc_method_handler(self._stream)

    async def _stream(
        self, requests: AsyncIterator[bytes], context: object
    ) -> AsyncIterator[bytes]:
        self.calls += 1
        for each in next(self._streams, []):
            yield each
        async for _ in requests:
            pass


async def test_bytes_that_are_no_message_end_the_stream_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise the node waits some seconds: asking such a peer often does not help.
    delay: Callable[..., float] = lambda *_: 0.0  # noqa: E731 - it is a value here
    monkeypatch.setattr(Reconnects, "delay_seconds", delay)
    welcome = pb.StreamConfigResponse(welcome=pb.Welcome(control_plane_id="cp"))
    messages = [each.SerializeToString() for each in full(1, configuration(3), 5)]
    raw = _Raw([b"\xff\xff\xff"], [welcome.SerializeToString(), *messages])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((raw,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with capture_logs() as logs:
            async with watching(f"127.0.0.1:{port}") as it:
                await until(lambda: it.revision == 5)
    finally:
        await server.stop(0)
    assert raw.calls == 2
    assert "config_stream_failed" not in [each["event"] for each in logs]


async def test_reading_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.control.receiving._MAX_WAITING_BYTES", 1_500)
    async with watching() as it:
        for number in range(1, 30):
            it.control_plane.say(*full(number, configuration(number), number))
            await it.control_plane.hear("ack")
        assert it.revision == 29
