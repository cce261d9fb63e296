"""A revocation reaches every data plane at once, whatever else is on its way to it, and the receipt says the truth."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col
from tollkeeper.admin.v1 import api_key_service_pb2 as key_pb
from tollkeeper.admin.v1 import changes_pb2

from controlplane.store import tables
from controlplane.store.database import Store
from tests.configuration.large_database import prepared
from tests.configuration.nodes import NodesProgram, nodes
from tests.distribution.process import Program, environment_of, program
from tests.rpc.admin_api import AdminApi

WAIT_MS = 10_000


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    nodes: int
    keys: int
    revocations: int
    p99_ms: float
    longest_ms: float
    start_s: float


# Three test workers share two cores: what is measured at full size is only bounded here.
SMALL = Size(nodes=4, keys=400, revocations=10, p99_ms=1_000, longest_ms=2_000, start_s=20)
FULL = Size(nodes=10, keys=100_000, revocations=100, p99_ms=250, longest_ms=1_000, start_s=240)
SIZES = [
    pytest.param(SMALL, id="small"),
    pytest.param(FULL, id="full", marks=pytest.mark.long),
]


@dataclass
class Service:
    """A control plane with a large database, and two processes of nodes."""

    size: Size
    program: Program
    api: AdminApi
    store: Store
    programs: list[NodesProgram]
    next_key: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    async def revoke_next(self) -> None:
        """Revoke a key and compare the receipt with what the nodes saw."""
        number, self.next_key = self.next_key, self.next_key + 1
        name = await self._name(f"key-{number}")
        began_ns = time.time_ns()
        receipt = await self.api.api_keys.RevokeApiKey(
            key_pb.RevokeApiKeyRequest(name=name, wait_ms=WAIT_MS)
        )
        ended_ns = time.time_ns()
        self._check(f"key-{number}", receipt, began_ns, ended_ns)

    async def _name(self, key_id: str) -> str:
        async with self.store.reading() as session:
            return (await session.get_one(tables.ApiKey, key_id)).name

    def _check(
        self, key_id: str, receipt: changes_pb2.RevocationReceipt, began_ns: int, ended_ns: int
    ) -> None:
        assert not receipt.missing
        seen: dict[str, int] = {}
        for each in self.programs:
            seen |= each.revoked_at_ns(key_id)
        told = {each.node: each.ms for each in receipt.applied}
        slowest_ms = max(told.values())
        for node, at_ns in seen.items():
            # Times count from the commit, which was early enough for the slowest answer.
            latest_ns = ended_ns - (slowest_ms - told[node] - 5) * 1_000_000
            assert began_ns <= at_ns <= latest_ns, (node, told[node])
            self.latencies_ms.append((at_ns - began_ns) / 1_000_000)
        # A node that was receiving everything may have got the revocation as part of it.
        self.at_least = len(seen)
        assert told.keys() >= seen.keys()

    def figures(self) -> tuple[float, float]:
        """Return the p99 and the longest time, in milliseconds, and begin anew."""
        ordered, self.latencies_ms = sorted(self.latencies_ms), []
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], ordered[-1]


@asynccontextmanager
async def service(folder: Path, size: Size) -> AsyncIterator[Service]:
    environment = environment_of(folder)
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite+aiosqlite:///{folder / 'large.sqlite'}"
    revision = await prepared(url, size.keys)
    environment["TOLLKEEPER_DATABASE_URL"] = url
    async with program(environment, size.start_s) as control_plane:
        api = AdminApi(control_plane.address, control_plane.owner_token)
        store = Store(url)
        half = size.nodes // 2
        names = [f"node-{number}" for number in range(size.nodes)]
        async with (
            nodes(control_plane.address, names[:half], control_plane.join_token) as first,
            nodes(control_plane.address, names[half:], control_plane.join_token) as second,
        ):
            for each in (first, second):
                await each.until_applied(revision, size.start_s)
            try:
                yield Service(size, control_plane, api, store, [first, second])
            finally:
                await store.close()
                await api.channel.close()


@pytest.mark.parametrize("size", SIZES)
async def test_a_revocation_reaches_every_node_at_once(size: Size, tmp_path: Path) -> None:
    async with service(tmp_path / "cp", size) as it:
        for _ in range(size.revocations):
            await it.revoke_next()
        assert it.at_least == size.nodes
        report("at rest", it)

        names = ["late-1", "late-2"]
        async with nodes(it.program.address, names, it.program.join_token) as late:
            it.programs.append(late)
            arriving = asyncio.create_task(late.until_applied(1, size.start_s))
            during = 0
            while not arriving.done():
                await it.revoke_next()
                during += 1
            await arriving
            it.programs.remove(late)
        report(f"while {len(names)} nodes were sent everything, {during} revocations", it)

        await spoil(it.store)
        for _ in range(size.revocations):
            await it.revoke_next()
        await until_refused(it)
        assert it.at_least == size.nodes
        report("while nodes refuse what is published", it)


def report(when: str, it: Service) -> None:
    p99_ms, longest_ms = it.figures()
    print(f"{when}: p99 {p99_ms:.0f} ms, longest {longest_ms:.0f} ms")  # noqa: T201 - shown by -s
    assert p99_ms <= it.size.p99_ms
    assert longest_ms <= it.size.longest_ms


async def spoil(store: Store) -> None:
    """Write what no node can serve, past every check of the admin API."""
    async with store.ledger() as session:
        counter = await session.get_one(tables.RevisionCounter, 1)
        counter.revision += 1
        await session.exec(
            update(tables.Organization)
            .where(col(tables.Organization.id) == "org-0")
            .values(time_zone="Nowhere/Land", revision=counter.revision)
        )


async def until_refused(it: Service) -> None:
    """Check that nodes did refuse what was published."""
    applied = [revision for each in it.programs for revision in each.applied().values()]
    async with it.store.reading() as session:
        counter = await session.get_one(tables.RevisionCounter, 1)
    assert max(applied) < counter.revision - it.size.revocations + 1
