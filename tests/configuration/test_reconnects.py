"""The table of reconnects, with real nodes: what each is sent first when it comes back, why, and what it has then."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import update
from sqlmodel import select
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.store import tables
from controlplane.store.compaction import compact
from controlplane.store.database import Store
from dataplane.control import receiving
from dataplane.control.hello import Node
from dataplane.control.sealing import SealingKey
from dataplane.control.transfers import IncomingTransfer
from tests.configuration.contents import held_facts, read_content
from tests.configuration.machine_planes import EVERYBODY, Clock, Host, OnlyWhole
from tests.configuration.machine_rows import Rows
from tests.configuration.proxy import Proxy
from tests.distribution.conftest import ControlPlane, running
from tests.distribution.node import eventually

NONE: Final = pb.TRANSFER_INTENT_NONE
DELTA: Final = pb.TRANSFER_INTENT_DELTA
FULL: Final = pb.TRANSFER_INTENT_FULL
EARLIER: Final = "t000000000001-000000000001"
LATER: Final = "tffffffffffe-000000000001"
Sent = list[tuple[int, int]]
"""Intents and reasons."""


@dataclass
class Scene:
    """A database, control planes on it one after the other, and a node with a disk."""

    path: Path
    host: Host
    sent: Sent
    rows: Rows = field(default_factory=Rows)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    plane: ControlPlane | None = None

    def store(self) -> Store:
        store = Store(f"sqlite+aiosqlite:///{self.path}")
        self.stack.push_async_callback(store.close)
        return store

    async def start(self, poll_s: float = 0.2) -> ControlPlane:
        """Start a control plane on the database; the node's way leads to it."""
        store = self.store()
        self.plane = await self.stack.enter_async_context(running(store, poll_s=poll_s))
        self.host.proxy.point_at(self.plane.address)
        return self.plane

    async def restart(self) -> None:
        await self.stack.aclose()
        await self.start()

    async def write(self, what: str = "user") -> None:
        """Make a change."""
        store = self.store()
        async with store.transaction("test", "Write") as tx:
            await self.rows.add(tx, what, 0)

    async def remove_price(self) -> None:
        async with self.store().transaction("test", "Remove") as tx:
            await self.rows.remove(tx, "price", 0)

    async def set_counter(self, **values: object) -> None:
        """Write to the counter past the product."""
        async with self.store().ledger() as session:
            await session.exec(update(tables.RevisionCounter).values(**values))

    async def forget(self) -> None:
        """Let eight days pass, and forget what was deleted before."""
        store = self.store()
        store.clock = lambda: datetime.now(UTC) + timedelta(days=8)
        assert await compact(store)

    async def falsify(self) -> None:
        """Change a row past the product: the same revision has another content now."""
        async with self.store().ledger() as session:
            await session.exec(update(tables.User).values(tier="false"))

    async def node_starts(self) -> None:
        """Have the node follow to what is in the database."""
        await self.host.start()
        await eventually(self.is_current, 10)

    def is_current(self) -> bool:
        """Say whether the node is where the database is, with what is in it."""
        assert self.host.life is not None
        holdings, content = self.host.life.watch.holdings, read_content(self.path)
        place = holdings.position.config_epoch, holdings.position.revision
        is_there = place == (content.config_epoch, content.revision)
        return is_there and held_facts(holdings) == content.facts and self.host.life.is_following

    async def node_comes_back(self) -> Sent:
        """Have the node come back from its disk; return what it was sent."""
        self.sent.clear()
        await self.node_starts()
        await eventually(lambda: bool(self.sent), 10)
        return self.sent


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What nodes of this process were sent."""
    found: Sent = []

    class Noted(IncomingTransfer):
        def __init__(self, begin: pb.TransferBegin, sealing_key: SealingKey) -> None:
            found.append((begin.intent, begin.reason))
            super().__init__(begin, sealing_key)

    monkeypatch.setattr(receiving, "IncomingTransfer", Noted)
    return found


MakeScene = Callable[[type[Node]], Awaitable[Scene]]


@pytest.fixture
async def make_scene(tmp_path: Path, sqlite_template: Path, sent: Sent) -> AsyncIterator[MakeScene]:
    """Makes the scene with a node of a class, which has everything and was stopped."""
    path, proxy = tmp_path / "controlplane.sqlite", Proxy()
    shutil.copyfile(sqlite_template, path)
    await proxy.start()
    scenes: list[Scene] = []

    async def make(made: type[Node]) -> Scene:
        host = Host(
            "node-1",
            tmp_path,
            lambda: made("node-1", "0.1.0", ""),
            EVERYBODY,
            proxy,
            Clock(),
            lambda _host, _life: None,
        )
        scene = Scene(path, host, sent)
        scenes.append(scene)
        async with scene.store().transaction("test", "Write") as tx:
            for row in scene.rows.basics():
                tx.add(row)
                await tx.session.flush()
        await scene.write("price")
        await scene.start()
        await scene.node_starts()
        assert sent == [(FULL, pb.TRANSFER_REASON_FIRST)]
        await host.stop()
        return scene

    yield make
    for scene in scenes:
        if scene.host.life is not None:
            await scene.host.stop()
        await scene.stack.aclose()
    await proxy.stop()


@pytest.fixture
async def scene(make_scene: MakeScene) -> Scene:
    """A node that can be told differences."""
    return await make_scene(Node)


async def test_same_position(scene: Scene) -> None:
    assert await scene.node_comes_back() == [(NONE, pb.TRANSFER_REASON_CURRENT)]


async def test_older_position(scene: Scene) -> None:
    await scene.write()
    await scene.remove_price()
    await scene.restart()

    assert await scene.node_comes_back() == [(DELTA, pb.TRANSFER_REASON_CHANGED)]


async def test_newer_position(scene: Scene) -> None:
    lagging = await scene.start(poll_s=60)
    await scene.write()
    ahead = await scene.start()
    await scene.node_starts()
    await scene.host.stop()
    assert lagging.fleet.current.revision < ahead.fleet.current.revision

    scene.host.proxy.point_at(lagging.address)

    assert await scene.node_comes_back() == [(NONE, pb.TRANSFER_REASON_CURRENT)]


@pytest.mark.parametrize("config_epoch", [EARLIER, LATER])
async def test_unknown_epoch(scene: Scene, config_epoch: str) -> None:
    await scene.stack.aclose()
    await scene.set_counter(config_epoch=config_epoch)
    await scene.restart()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_EPOCH)]


async def test_compacted(scene: Scene) -> None:
    await scene.remove_price()
    await scene.forget()
    await scene.write()
    await scene.restart()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_COMPACTED)]


async def test_compacted_after_most_was_deleted(scene: Scene) -> None:
    async with scene.store().transaction("test", "Write") as tx:
        await scene.rows.add_many(tx, 0)
    await scene.node_starts()
    await scene.host.stop()
    async with scene.store().transaction("test", "Delete") as tx:
        for row in await tx.session.exec(select(tables.ApiKey)):
            await tx.delete(row)
    await scene.forget()
    await scene.restart()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_COMPACTED)]


async def test_wrong_digest_of_the_newest_revision(scene: Scene) -> None:
    await scene.falsify()
    await scene.restart()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_MISMATCH)]


async def test_wrong_digest_of_a_former_revision_is_noticed_by_the_node(scene: Scene) -> None:
    await scene.falsify()
    await scene.write()
    await scene.restart()

    assert await scene.node_comes_back() == [
        (DELTA, pb.TRANSFER_REASON_CHANGED),
        (FULL, pb.TRANSFER_REASON_MISMATCH),
    ]


async def test_a_node_that_takes_no_differences(make_scene: MakeScene) -> None:
    scene = await make_scene(OnlyWhole)
    await scene.write()
    await scene.restart()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_UNSUITED)]


async def test_a_node_without_its_disk(scene: Scene) -> None:
    scene.host.wipe()

    assert await scene.node_comes_back() == [(FULL, pb.TRANSFER_REASON_FIRST)]
