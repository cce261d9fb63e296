"""What is particular to PostgreSQL: the schema is another program's business."""

import asyncio
import signal
import time
from pathlib import Path

import grpc.aio
import pytest
from tollkeeper.admin.v1 import node_service_pb2 as nodes_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as nodes_grpc
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.domain.kinds import Kind
from controlplane.store import schema
from controlplane.store.changes import Changes, changes_since
from controlplane.store.database import Store
from controlplane.store.tables import Organization
from tests.distribution.conftest import NOW
from tests.distribution.node import connected
from tests.distribution.process import Program, environment_of, program
from tests.distribution.test_process import (
    bearer,
    create_organization,
    last_line,
    organizations_of,
)
from tests.fixtures_databases import PostgresServer

CAPABILITIES = (pb.CAPABILITY_DELTA, pb.CAPABILITY_GOODBYE)


async def test_a_database_without_the_schema_stops_the_start_with_one_line(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    name = postgres_server.create("template0")
    environment = environment_of(tmp_path) | {
        "TOLLKEEPER_DATABASE_URL": postgres_server.url_of(name)
    }

    line = await last_line(environment)
    await schema.upgrade(postgres_server.url_of(name))
    async with program(environment) as running:
        revision = await create_organization(running, "acme")
        organizations = await organizations_of(running, revision)
    postgres_server.drop(name)

    assert "run `tollkeeper db upgrade` first" in line
    assert organizations == ["acme"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_transactions_that_commit_in_reverse_order_of_their_start_lose_nothing(
    database_url: str,
) -> None:
    one, other, reader = Store(database_url), Store(database_url), Store(database_url)
    seen: list[Changes] = []

    async def read(since: int) -> None:
        async with reader.reading() as session:
            seen.append(await changes_since(session, since))

    async with one.transaction("ann", "x") as first:
        first.add(organization("first"))
        await first.session.flush()
        async with other.transaction("bob", "x") as second:
            second.add(organization("second"))
            await second.session.flush()
        await read(0)
        await first.seal()
        # Sealed, and not committed yet: nobody may see its number.
        await read(1)
    await read(1)
    for each in (one, other, reader):
        await each.close()

    assert (second.revision, first.revision) == (1, 2)
    assert [each.revision for each in seen] == [1, 1, 2]
    assert [[row.id for row in each.rows[Kind.ORGANIZATION]] for each in seen] == [
        ["second"],
        [],
        ["first"],
    ]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_commit_waits_for_the_one_that_has_the_number_before_it(database_url: str) -> None:
    one, other = Store(database_url), Store(database_url)

    async def write() -> int:
        async with other.transaction("bob", "x") as tx:
            tx.add(organization("second"))
        return tx.revision

    async with one.transaction("ann", "x") as first:
        first.add(organization("first"))
        await first.seal()
        waiting = asyncio.create_task(write())
        _, pending = await asyncio.wait({waiting}, timeout=0.3)
        assert pending == {waiting}
    assert await asyncio.wait_for(waiting, 5) == 2
    assert first.revision == 1
    await one.close()
    await other.close()


def organization(name: str) -> Organization:
    return Organization(id=name, name=name, created_at=NOW, updated_at=NOW)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_programs_serve_one_database_and_the_nodes_of_one_that_died_go_on_at_the_other(
    database_url: str, tmp_path: Path
) -> None:
    # All but the data directory is the same for both.
    one_has = environment_of(tmp_path / "one") | {"TOLLKEEPER_DATABASE_URL": database_url}
    other_has = one_has | {"TOLLKEEPER_DATA_DIR": str(tmp_path / "other")}
    async with (
        program(one_has) as one,
        program(other_has) as other,
        connected(other.address, other.join_token, CAPABILITIES) as node,
    ):
        await node.hello("node-1")
        begun = time.monotonic()
        await node.follow_to(await create_organization(one, "acme"))
        assert time.monotonic() - begun < 1
        await until_listed(one, "node-1")

        await other.stop(signal.SIGKILL)

        revision = await create_organization(one, "globex")
        begun = time.monotonic()
        async with connected(one.address, one.join_token, CAPABILITIES) as moved:
            moved.resume(node)
            await moved.hello("node-1")
            received = await moved.follow_to(revision)
            assert time.monotonic() - begun < 5

    assert received.begin.intent == pb.TRANSFER_INTENT_DELTA
    assert len(received.resources) == 1


async def until_listed(running: Program, node_id: str) -> None:
    """Wait until a program shows a node that is connected to another one."""
    async with asyncio.timeout(5), grpc.aio.insecure_channel(running.address) as channel:
        while True:
            listed = await nodes_grpc.NodeServiceStub(channel).ListNodes(
                nodes_pb.ListNodesRequest(), metadata=bearer(running.owner_token), timeout=5
            )
            if [each.node_id for each in listed.nodes] == [node_id]:
                return
            await asyncio.sleep(0.05)  # polled: the other program tells nobody but the database
