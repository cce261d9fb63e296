"""Both programs and the administrator's commands as processes, over TLS: join, follow, restart, ban."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tollkeeper.admin.v1 import node_service_pb2 as node_pb
from tollkeeper.admin.v1 import node_service_pb2_grpc as node_grpc
from typer.testing import CliRunner

from controlplane.cli.app import app
from dataplane.control.channels import secure_channel
from dataplane.control.identity import CONTROL_PLANE_NAME
from tests.distribution.process import START_DEADLINE_S, environment_of, program

COMMAND_DEADLINE_S = 30.0


@asynccontextmanager
async def data_plane(
    environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a data plane until the block ends."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dataplane", env=clean(environment), stderr=errors
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), START_DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    return {**inherited, **environment}


class Administrator:
    """Runs `tollkeeper node …` against a control plane."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = clean(environment)

    async def __call__(self, *words: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("tollkeeper")),
            *("node", *words, "-o", "json"),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await asyncio.wait_for(process.communicate(), COMMAND_DEADLINE_S)
        assert process.returncode == 0, errors.decode()
        return json.loads(out)

    async def until_connected(self, node_ids: list[str]) -> None:
        """Wait for these nodes and no others to be in step. Asked without the program, whose start takes a second."""
        authority = Path(self._environment["TOLLKEEPER_CA"]).read_bytes()
        address = self._environment["TOLLKEEPER_ADMIN_ADDRESS"]
        bearer = (("authorization", f"Bearer {self._environment['TOLLKEEPER_ADMIN_TOKEN']}"),)
        async with (
            asyncio.timeout(COMMAND_DEADLINE_S),
            secure_channel(address, authority, CONTROL_PLANE_NAME) as channel,
        ):
            nodes = node_grpc.NodeServiceStub(channel)
            while True:
                found = await nodes.ListNodes(node_pb.ListNodesRequest(), metadata=bearer)
                if [each.node_id for each in found.nodes] == node_ids and all(
                    each.applied == found.current for each in found.nodes
                ):
                    return
                await asyncio.sleep(0.02)


async def test_a_data_plane_joins_over_tls_restarts_without_its_token_and_is_banned(
    tmp_path: Path, redis_url: str
) -> None:
    own = environment_of(tmp_path / "controlplane") | {
        "TOLLKEEPER_TLS": "own",
        "TOLLKEEPER_NODE_PORT": "0",
    }
    del own["TOLLKEEPER_JOIN_TOKEN"]
    log = tmp_path / "dataplane.log"
    async with program(own) as control_plane:
        ready = json.loads((tmp_path / "controlplane" / "controlplane.ready").read_text("utf-8"))
        administer = Administrator(
            {
                "TOLLKEEPER_ADMIN_ADDRESS": control_plane.address,
                "TOLLKEEPER_ADMIN_TOKEN": control_plane.owner_token,
                "TOLLKEEPER_CA": str(tmp_path / "controlplane" / "authority.pem"),
            }
        )
        created = await administer("create-token", "--node", "eu-1")
        token = created["join_token"]
        node = {
            "TOLLKEEPER_DATA_DIR": str(tmp_path / "dataplane"),
            "TOLLKEEPER_PORT": "0",
            "TOLLKEEPER_REDIS_URL": redis_url,
            "TOLLKEEPER_CONTROL_PLANE": ready["node_address"],
        }

        async with data_plane({**node, "TOLLKEEPER_JOIN_TOKEN": token}, log):
            await administer.until_connected(["eu-1"])
            [listed] = await administer("list")
            assert (listed["node_id"], listed["in_step"]) == ("eu-1", True)
        async with data_plane(node, log):
            await administer.until_connected(["eu-1"])
            assert await administer("list-tokens") == []
            await administer("ban", "eu-1", "--reason", "taken over")
            await administer.until_connected([])
        [shown] = await administer("enrolled")
        errors = await control_plane.stop()

    assert (shown["node_id"], shown["ban_reason"]) == ("eu-1", "taken over")
    assert shown["certificate_expires_at"] > shown["enrolled_at"]
    for text in (errors, log.read_text("utf-8")):
        assert token not in text
        assert "PRIVATE KEY" not in text
    assert "Traceback" not in log.read_text("utf-8")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"TOLLKEEPER_HOST": "0.0.0.0"}, "TOLLKEEPER_HOST must be a loopback address"),  # noqa: S104
        ({"TOLLKEEPER_TLS": "files"}, "TOLLKEEPER_TLS_CERT is not set"),
        ({"TOLLKEEPER_JOIN_TOKEN": ""}, "TOLLKEEPER_JOIN_TOKEN is not set"),
    ],
    ids=["off loopback", "without files", "without a token"],
)
async def test_a_control_plane_that_could_not_be_trusted_does_not_start(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    with pytest.raises(AssertionError, match=says):
        async with program({**environment_of(tmp_path), **changed}):
            pass


@pytest.mark.parametrize("words", [("--org", ""), ("--org", ","), ("--node", "")])
def test_a_variable_that_is_empty_makes_no_token_for_everything(words: tuple[str, str]) -> None:
    """As in `--org "$ORGANIZATION"`: no organization would mean all of them."""
    result = CliRunner().invoke(app, ["node", "create-token", *words])

    assert result.exit_code == 2
    assert "or are left out" in result.output
