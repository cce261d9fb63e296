"""A control plane whose SQLite file was put back from a backup, with nodes that know what came after it."""

import json
import shutil
from pathlib import Path

from tollkeeper.common.v1 import position_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from tests.distribution.node import connected
from tests.distribution.process import Program, environment_of, program
from tests.distribution.test_process import create_organization, organizations_of

DATABASE = "controlplane.sqlite"


async def test_nodes_get_everything_of_a_restored_database(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    backup = tmp_path / "backup.sqlite"
    async with program(environment) as running:
        await create_organization(running, "kept")
        await running.stop()
    shutil.copyfile(tmp_path / DATABASE, backup)
    async with program(environment) as running:
        for name in ("lost", "lost-too"):
            revision = await create_organization(running, name)
        position = await position_at(running, revision)
        await running.stop()
    for each in tmp_path.glob(f"{DATABASE}*"):
        each.unlink()
    shutil.copyfile(backup, tmp_path / DATABASE)

    # The owner's token is another one: what the program writes at its start does not hide what is missing.
    environment |= {
        "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN": environment_of(tmp_path)[
            "TOLLKEEPER_BOOTSTRAP_ADMIN_TOKEN"
        ],
        "TOLLKEEPER_MAX_REPLICAS": "3",
    }
    async with program(environment) as running:
        async with connected(running.address, running.join_token) as node:
            node.applied.CopyFrom(position)
            await node.hello()
            received = await node.follow()
        organizations = await organizations_of(running, received.begin.to.revision)
        errors = await running.stop()

    assert received.begin.intent == pb.TRANSFER_INTENT_FULL
    assert received.begin.reason == pb.TRANSFER_REASON_EPOCH
    assert received.begin.to.config_epoch > position.config_epoch
    assert organizations == ["kept"]
    loud = [json.loads(line) for line in errors.splitlines() if "was restored" in line]
    assert [each["level"] for each in loud] == ["error"]
    assert loud[0]["cause"] == "went_back"


async def position_at(running: Program, revision: int) -> position_pb2.Position:
    """Return what a node has that follows to a revision."""
    async with connected(running.address, running.join_token) as node:
        await node.hello()
        return (await node.follow_to(revision)).begin.to
