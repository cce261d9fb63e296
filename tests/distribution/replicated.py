"""A control plane beside others on one database: all that the program runs, but administrators and their port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from controlplane.replication import Replication
from controlplane.rpc.config import ConfigServicer, add_config_service
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.store.database import Store
from controlplane.tasks import running
from tests.distribution.conftest import SEALER


@dataclass
class Replica:
    """One of several control planes."""

    store: Store
    fleet: Fleet
    publisher: Publisher
    replication: Replication
    address: str


@asynccontextmanager
async def replica(url: str, data_dir: Path, control_plane_id: str) -> AsyncIterator[Replica]:
    """Run one on a store of its own until the block ends."""
    async with AsyncExitStack() as stack:
        store = Store(url)
        stack.push_async_callback(store.close)
        replication = Replication(store, data_dir, control_plane_id)
        fleet = Fleet(secret_opener(SEALER), peers=replication.replicas)
        publisher = Publisher(store, fleet)
        await replication.start()
        await publisher.load()
        server = grpc.aio.server()
        servicer = ConfigServicer(fleet, control_plane_id=control_plane_id, version="0.1.0")
        add_config_service(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await stack.enter_async_context(running(publisher.run()))
        await stack.enter_async_context(replication.running(fleet, publisher, _nothing_periodic))
        try:
            yield Replica(store, fleet, publisher, replication, f"127.0.0.1:{port}")
        finally:
            fleet.close()
            await server.stop(2)


async def _nothing_periodic() -> None:
    await asyncio.Event().wait()
