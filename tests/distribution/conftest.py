"""A control plane's distribution on a real server, and nodes that connect to it."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tollkeeper.common.v1.devices_pb2 import DEVICE_STATUS_REVOKED

from controlplane.domain.kinds import Kind
from controlplane.rpc.config import ConfigServicer, add_config_service
from controlplane.rpc.revocations import REVOCABLE, keep_revocation
from controlplane.secrets.sealing import MasterKey, Sealer, Secret
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.identity import Identify, claims_nothing
from controlplane.snapshots.opening import secret_opener
from controlplane.snapshots.publisher import Publisher
from controlplane.snapshots.streams import STREAM_LIFE_S
from controlplane.store import tables
from controlplane.store.database import Store
from tests.distribution.node import Node, connected

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SEALER = Sealer([MasterKey(b"k" * 32)])


@dataclass
class ControlPlane:
    """The distribution of one control plane: store, publisher, fleet and the server of its streams."""

    store: Store
    fleet: Fleet
    address: str
    publisher: Publisher


class Rows:
    """Makes rows and writes them, one transaction each call."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._numbers = itertools.count(1)

    async def write(self, *rows: tables.ConfigurationRow) -> int:
        """Insert rows and return the revision."""
        async with self.store.transaction("test", "Write") as tx:
            for row in rows:
                tx.add(row)
                await tx.session.flush()
        assert tx.committed_revision is not None
        return tx.committed_revision

    async def change(
        self, table: type[tables.ConfigurationRow], row_id: str, **values: object
    ) -> int:
        """Change one row and return the revision."""
        async with self.store.transaction("test", "Change") as tx:
            row = await tx.session.get_one(table, row_id)
            for name, value in values.items():
                setattr(row, name, value)
            if values.get("revoked") or values.get("status") == DEVICE_STATUS_REVOKED:
                await keep_revocation(tx, row)
        assert tx.committed_revision is not None
        return tx.committed_revision

    async def delete(self, *found: tuple[type[tables.ConfigurationRow], str]) -> int:
        """Delete rows and return the revision."""
        async with self.store.transaction("test", "Delete") as tx:
            gone = [await tx.session.get_one(table, row_id) for table, row_id in found]
            # As the product does: an owner speaks for what is deleted with it.
            highest = min(map(_rank, gone))
            for row in gone:
                if row.KIND in REVOCABLE and _rank(row) == highest and not _is_revoked(row):
                    await keep_revocation(tx, row)
                await tx.delete(row)
                await tx.session.flush()
        assert tx.committed_revision is not None
        return tx.committed_revision

    async def basics(self) -> int:
        """Write an organization with a user, a key, a provider with a credential, and a router."""
        return await self.write(
            tables.ServiceSettings(id="service", created_at=NOW, updated_at=NOW),
            organization(),
            user(),
            provider(),
            credential(),
            router(),
            rule("rule-2", priority=2),
            rule("rule-1", priority=1),
            key(),
        )


def _rank(row: tables.ConfigurationRow) -> int:
    return {Kind.ORGANIZATION: 0, Kind.USER: 1}.get(row.KIND, 2)


def _is_revoked(row: tables.ConfigurationRow) -> bool:
    match row:
        case tables.ApiKey():
            return row.revoked
        case tables.Device():
            return row.status == DEVICE_STATUS_REVOKED
        case _:
            return False


def organization(row_id: str = "org-1", name: str = "acme") -> tables.Organization:
    return tables.Organization(id=row_id, name=name, created_at=NOW, updated_at=NOW)


def user(row_id: str = "user-1", organization_id: str = "org-1") -> tables.User:
    return tables.User(
        id=row_id,
        name=f"acme/{row_id}",
        organization_id=organization_id,
        created_at=NOW,
        updated_at=NOW,
    )


def key(row_id: str = "key-1", user_id: str = "user-1", padding: int = 0) -> tables.ApiKey:
    """Make a key; `padding` bytes of patterns make its resource larger."""
    return tables.ApiKey(
        id=row_id,
        name=f"acme/{user_id}/{row_id}",
        user_id=user_id,
        router_id="router-1",
        sha256=row_id.encode().ljust(32, b"."),
        display="tk_live_…",
        allowed_models=["x" * padding] if padding else [],
        created_at=NOW,
        updated_at=NOW,
    )


def provider(row_id: str = "provider-1") -> tables.Provider:
    return tables.Provider(
        id=row_id,
        name=row_id,
        provider_kind="mock",
        endpoints=[{"dialect": 1, "base_url": "http://127.0.0.1:9/v1"}],
        created_at=NOW,
        updated_at=NOW,
    )


def credential(
    row_id: str = "credential-1", secret: bytes = b"sk-provider-secret"
) -> tables.Credential:
    sealed = SEALER.seal(row_id, 1, Secret(secret))
    return tables.Credential(
        id=row_id,
        name=f"provider-1/{row_id}",
        provider_id="provider-1",
        version=1,
        sealed_secret=sealed,
        fingerprint=Secret(secret).fingerprint,
        created_at=NOW,
        updated_at=NOW,
    )


def router(row_id: str = "router-1") -> tables.Router:
    return tables.Router(id=row_id, name=row_id, created_at=NOW, updated_at=NOW)


def rule(row_id: str, *, priority: int, provider_id: str = "provider-1") -> tables.Rule:
    return tables.Rule(
        id=row_id,
        router_id="router-1",
        priority=priority,
        provider_id=provider_id,
        models=["*"],
        aliases={"b": "2", "a": "1", "c": "3"},
        created_at=NOW,
        updated_at=NOW,
    )


@asynccontextmanager
async def running(
    store: Store,
    *,
    interval_s: float = 5.0,
    poll_s: float = 1.0,
    max_nodes: int = 10,
    stream_life_s: float = STREAM_LIFE_S,
    identify: Identify = claims_nothing,
) -> AsyncIterator[ControlPlane]:
    """Run the distribution on `store` behind a real server."""
    fleet = Fleet(
        secret_opener(SEALER),
        interval_s=interval_s,
        max_nodes=max_nodes,
        stream_life_s=stream_life_s,
    )
    publisher = Publisher(store, fleet, poll_s=poll_s)
    await publisher.load()
    server = grpc.aio.server()
    add_config_service(
        ConfigServicer(fleet, control_plane_id="cp-1", version="0.1.0", identify=identify), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    following = asyncio.create_task(publisher.run())
    try:
        yield ControlPlane(store, fleet, f"127.0.0.1:{port}", publisher)
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        fleet.close()
        await server.stop(2)


@pytest.fixture
async def store(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Store]:
    """A store on SQLite: streams do not see which database it is; `database_url` is for what does."""
    path = tmp_path / "controlplane.sqlite"
    shutil.copyfile(sqlite_template, path)
    opened = Store(f"sqlite+aiosqlite:///{path}")
    yield opened
    await opened.close()


@pytest.fixture
def rows(store: Store) -> Rows:
    """Writes rows into the store of this test."""
    return Rows(store)


@pytest.fixture
async def control_plane(store: Store, rows: Rows) -> AsyncIterator[ControlPlane]:
    """A control plane that distributes the basics."""
    await rows.basics()
    async with running(store) as started:
        yield started


Connect = Callable[..., Awaitable[Node]]
"""Opens a stream; takes what `connected` takes."""


@pytest.fixture
async def connect(control_plane: ControlPlane) -> AsyncIterator[Connect]:
    """Opens streams to the control plane and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def open_stream(**options: Any) -> Node:  # Any: see `connected`
            return await stack.enter_async_context(connected(control_plane.address, **options))

        yield open_stream
