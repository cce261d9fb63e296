"""A node that stops reading costs nobody else anything."""

import asyncio

import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.rpc.config import _Stream
from controlplane.store.database import Store
from tests.distribution.conftest import ControlPlane, Rows, key, running
from tests.distribution.node import Node, connected, eventually


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
    stop = _Stream.stop

    def noted(stream: _Stream) -> None:
        stopped.append(stream.watcher.boot_id)
        stop(stream)

    monkeypatch.setattr(_Stream, "stop", noted)
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
