"""What is particular to PostgreSQL: the schema is another program's business."""

from pathlib import Path

from controlplane.store import schema
from tests.distribution.process import environment_of, program
from tests.distribution.test_process import create_organization, last_line, organizations_of
from tests.fixtures_databases import PostgresServer


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
