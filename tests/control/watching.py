"""A watch on a scripted control plane, and what it had to keep."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tollkeeper.config.v1 import config_service_pb2_grpc as pb_grpc

from dataplane.control.current import CurrentSnapshot, Revoked
from dataplane.control.holdings import Change, Holdings
from dataplane.control.kept import KeptRevocation
from dataplane.control.watch import Condition, Node, Watch
from dataplane.domain.revocations import Revocation
from tests.control.scripted import ScriptedControlPlane


@dataclass
class Disk:
    """Keeps what it is told in memory, and as slowly or badly as a test wants."""

    changes: list[Change] = field(default_factory=list)
    revocations: list[KeptRevocation] = field(default_factory=list)
    is_working: asyncio.Event = field(default_factory=asyncio.Event)
    is_full: bool = False

    def __post_init__(self) -> None:
        """Work until a test clears `is_working`."""
        self.is_working.set()

    def keep(self, holdings: Holdings, change: Change) -> None:
        """Keep a change."""
        assert holdings.position == change.position
        self.changes.append(change)

    async def keep_revocation(self, revocation: KeptRevocation) -> bool:
        """Keep a revocation, when it works."""
        await self.is_working.wait()
        if not self.is_full:
            self.revocations.append(revocation)
        return not self.is_full


@dataclass
class Watching:
    """A watch, what it listens to, and what became of it."""

    control_plane: ScriptedControlPlane
    current: CurrentSnapshot
    watch: Watch
    disk: Disk
    terminated: list[Revoked]
    told: list[Revocation]

    @property
    def revision(self) -> int:
        """Return the revision in force; -1: none is."""
        return -1 if self.current.latest is None else self.current.latest.position.revision


@asynccontextmanager
async def serving(servicer: pb_grpc.ConfigServiceServicer, port: int = 0) -> AsyncIterator[str]:
    """Serve on the loopback and yield the address."""
    # Without it two servers may share a port, and a test would not know who answers.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ConfigServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def watching(
    *addresses: str, heartbeat_ms: int = 5_000, **options: Any
) -> AsyncIterator[Watching]:
    """Watch `addresses`, or a control plane of one's own; `options` are those of a Watch."""
    control_plane = ScriptedControlPlane(heartbeat_ms=heartbeat_ms)
    terminated: list[Revoked] = []
    told: list[Revocation] = []
    current = CurrentSnapshot(terminated.append)
    disk = Disk()
    async with AsyncExitStack() as stack:
        if not addresses:
            addresses = (await stack.enter_async_context(serving(control_plane)),)
        options = {
            "condition": Condition(unreported_records=lambda: 3),
            "keeper": disk,
            "on_revocation": told.append,
            **options,
        }
        node = Node("node-1", "0.1.0", "join-token")
        watch = Watch(addresses, node, current, lambda: time.time_ns() // 1_000_000, **options)
        task = asyncio.create_task(watch.run())
        try:
            yield Watching(control_plane, current, watch, disk, terminated, told)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            control_plane.say(None)


async def until(condition: Callable[[], object], deadline_seconds: float = 5.0) -> None:
    """Return when `condition` holds."""
    async with asyncio.timeout(deadline_seconds):
        while not condition():
            await asyncio.sleep(0.005)
