"""A node that stops reading costs nobody else anything."""

import asyncio
import gc
import tracemalloc
from contextlib import AsyncExitStack

import grpc
import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.rpc import config_streams
from controlplane.rpc.config_streams import NodeStream
from controlplane.snapshots import streams
from controlplane.snapshots.gate import FullGate
from controlplane.store.database import Store
from tests.distribution.conftest import ControlPlane, Rows, key, running
from tests.distribution.node import MODERN, Node, connected, eventually


def is_stalled(started: ControlPlane) -> bool:
    """Say whether the only stream owes a heartbeat for long: its handler waits for the reader."""
    (watcher,) = started.fleet.watchers()
    return watcher.idle_s(started.fleet.now_s() - 0.2) == 0


async def beat(node: Node) -> None:
    """Be heard, however long a busy machine takes."""
    while True:
        await node.say(heartbeat=pb.Heartbeat())
        await asyncio.sleep(0.2)  # the pace of this node, not a wait for something


async def test_a_stream_that_is_not_read_can_be_replaced(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    stop = NodeStream.stop

    def noted(stream: NodeStream) -> None:
        stopped.append(stream.watcher.boot_id)
        stop(stream)

    monkeypatch.setattr(NodeStream, "stop", noted)
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with (
        running(store, interval_s=1.0) as started,
        connected(started.address) as deaf,
        connected(started.address) as newer,
    ):
        await deaf.hello(boot_id="boot-1")
        await eventually(lambda: is_stalled(started))
        await newer.hello(boot_id="boot-2")
        beating = asyncio.create_task(beat(newer))
        received = await newer.follow()

        assert len(received.resources) == 107
        # Its handler waited for a reader that never reads: it was cut off.
        await eventually(lambda: "boot-1" in stopped)
        assert [each.boot_id for each in started.fleet.watchers()] == ["boot-2"]
        beating.cancel()


async def test_a_stream_that_is_not_read_and_not_heard_ends(store: Store, rows: Rows) -> None:
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with running(store, interval_s=0.1) as started, connected(started.address) as deaf:
        await deaf.hello()

        await eventually(lambda: started.fleet.watchers() == [])


async def test_a_slow_reader_that_is_heard_may_take_its_time(store: Store, rows: Rows) -> None:
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with running(store, interval_s=0.1) as started, connected(started.address) as slow:
        await slow.hello()
        watcher = started.fleet.watchers()[0]
        begun = watcher.heard_at_s

        while watcher.heard_at_s < begun + 0.6:
            await slow.say(heartbeat=pb.Heartbeat())
            await asyncio.sleep(0.02)  # the pace of this node, not a wait for something
        received = await slow.transfer()

        assert len(received.resources) == 107


async def test_a_stream_on_which_nothing_is_taken_ends_though_it_is_heard(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_streams, "STANDSTILL_S", 0.5)
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with running(store) as started, connected(started.address) as deaf:
        await deaf.hello()
        beating = asyncio.create_task(beat(deaf))

        await eventually(lambda: started.fleet.watchers() == [])

        assert await deaf.ended() != grpc.StatusCode.OK
        beating.cancel()


async def test_a_few_get_everything_at_a_time_and_the_others_get_all_else_meanwhile(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FullGate", lambda: FullGate(places=2))
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with running(store, interval_s=0.5) as started, AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(connected(started.address)) for _ in range(4)]
        for number, node in enumerate(nodes):
            await node.hello(f"node-{number}")
        beating = [asyncio.create_task(beat(node)) for node in nodes]
        await eventually(lambda: started.fleet.tally.transfers_total["full"] == 2)

        # They wait for their turn and hear what is urgent.
        revoking = asyncio.create_task(
            started.fleet.revoke(4, "key-1", 99, terminate_streams=False, wait_ms=3_000)
        )
        for node in nodes[2:]:
            await node.read_until(lambda each: each.HasField("heartbeat"))
            await eventually(lambda: not revoking.done())
            assert [each.subject.id for each in node.revocations] == ["key-1"]
            assert node.transfers == 0
        assert started.fleet.tally.transfers_total["full"] == 2

        # Two that read and one that goes away make room.
        first = await nodes[0].transfer()
        nodes[1].call.cancel()
        others = await asyncio.gather(nodes[2].transfer(), nodes[3].transfer())
        for task in (revoking, *beating):
            task.cancel()

    assert {len(each.resources) for each in (first, *others)} == {107}


async def test_slow_readers_share_the_configuration_and_hold_a_chunk_each(
    store: Store, rows: Rows
) -> None:
    await rows.basics()
    await rows.write(*(key(f"large-{number}", padding=200_000) for number in range(100)))
    async with running(store, interval_s=30) as started, AsyncExitStack() as stack:
        gc.collect()
        tracemalloc.start()
        nodes = [
            await stack.enter_async_context(connected(started.address, capabilities=MODERN))
            for _ in range(4)
        ]
        for number, node in enumerate(nodes):
            await node.hello(f"node-{number}")
        await eventually(
            lambda: (
                all(each.idle_s(started.fleet.now_s()) > 0 for each in started.fleet.watchers())
                and started.fleet.tally.transfer_bytes_total > 4 * 250_000
            )
        )
        grown_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    # The configuration is 20 MB, and was there before.
    assert grown_bytes < 8_000_000
