"""What is in a ledger already when the sums by subject come: they begin as what it adds up to."""

import random
import secrets
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from alembic import command
from sqlalchemy import Connection, Table, TableClause, column, insert, table
from tollkeeper.usage.v1 import usage_service_pb2 as pb

from controlplane.rpc.usage_records import row_from_record
from controlplane.store import ledger as ledger_store
from controlplane.store import schema
from controlplane.store.database import Store, open_engine
from controlplane.store.ledger import LEDGER
from controlplane.store.recounting import recount
from controlplane.store.tables import SubjectLimits
from tests.ledger.test_ledger import BEGIN, record, timestamp
from tests.ledger.test_usage_totals import kept_sums, ledger_sums, random_record

NEW_COLUMNS = {"rates", "address_subjects", "layers", "is_degraded", "output_cap_tokens"}


async def upgrade_to(url: str, version: str) -> None:
    def run(connection: Connection) -> None:
        config = schema._config()
        config.attributes["connection"] = connection
        command.upgrade(config, version)

    engine = open_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


def old_record(chance: random.Random, number: int) -> pb.UsageRecord:
    """A record of before this step, of a request of its own: nothing was reset, and no address was noted."""
    made = random_record(chance, 1)
    made.request_id = record(number).request_id
    made.started_at.CopyFrom(timestamp(BEGIN + timedelta(seconds=number)))
    del made.generations[:]
    del made.address_subjects[:]
    return made


def without_defaults(full: Table, names: Iterable[str]) -> TableClause:
    """A table as code knows it that fills no column by itself."""
    return table(full.name, *(column(name, full.c[name].type) for name in names))


async def insert_rows(url: str, full: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows with these columns and no others."""
    engine = open_engine(url)
    async with engine.begin() as connection:
        await connection.execute(insert(without_defaults(full, rows[0])), list(rows))
    await engine.dispose()


async def insert_as_before(url: str, records: Sequence[pb.UsageRecord]) -> None:
    """Insert rows of the ledger as the code before did: without the new columns."""
    rows = [row_from_record(each) for each in records]
    old = [{name: row[name] for name in row if name not in NEW_COLUMNS} for row in rows]
    await insert_rows(url, LEDGER, old)


async def test_the_sums_begin_as_what_the_ledger_adds_up_to(empty_database_url: str) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    await upgrade_to(empty_database_url, "0002")
    await insert_as_before(empty_database_url, [old_record(chance, n) for n in range(150)])

    await schema.upgrade(empty_database_url)

    store = Store(empty_database_url)
    sums = await kept_sums(store)
    assert len(sums) > 100
    assert sums == await ledger_sums(store), f"seed {seed}"
    async with store.ledger() as session:
        settled = [row_from_record(record(n, user_id="u1")) for n in range(200)]
        await ledger_store.record(session, settled)
    assert await kept_sums(store) == await ledger_sums(store), f"seed {seed}"
    await store.close()


async def test_what_the_code_before_wrote_after_all_is_kept_and_recounted(
    empty_database_url: str,
) -> None:
    limits = SubjectLimits.metadata.tables["subject_limits"]

    def row(name: str) -> dict[str, Any]:
        stamps = {"revision": 1, "created_at": BEGIN, "updated_at": BEGIN}
        return {
            "id": f"user:{name}",
            "name": f"user:a/{name}",
            "subject_kind": 3,
            "subject_id": name,
            "limits": [],
            **stamps,
        }

    await upgrade_to(empty_database_url, "0002")
    await insert_rows(empty_database_url, limits, [row("u")])
    await schema.upgrade(empty_database_url)

    await insert_rows(empty_database_url, limits, [row("v")])
    await insert_as_before(empty_database_url, [record(1)])

    store = Store(empty_database_url)
    assert await kept_sums(store) == {}
    async with store.ledger() as session:
        assert await recount(session) == 1
    assert await kept_sums(store) == await ledger_sums(store) != {}
    async with store.reading() as session:
        for row_id in ("user:u", "user:v"):
            found = await session.get_one(SubjectLimits, row_id)
            assert (found.temporary_limits, found.resets, found.limits) == ([], [], [])
    await store.close()
