"""Which servers the script is proven on, and that a missing one is not passed over in silence."""

from pathlib import Path

import pytest
import redis

from tests.limits import servers
from tests.limits.servers import EMBEDDED, INSTALLED, NoServerError


def program(folder: Path, says: str) -> dict[str, str]:
    """Put a program that says its version on a PATH of its own."""
    path = folder / INSTALLED
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return {"PATH": str(folder)}


def test_a_machine_without_a_redis_proves_the_script_on_the_embedded_server_alone(
    tmp_path: Path,
) -> None:
    assert servers.names({"PATH": str(tmp_path)}) == (EMBEDDED,)


def test_a_run_that_gates_changes_needs_a_redis_and_says_so(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CI": "true"}

    assert servers.names(environment) == (EMBEDDED, INSTALLED)
    with pytest.raises(NoServerError, match=r"redis-server >= 6\.2 on PATH: there is none"):
        servers.installed(environment)


@pytest.mark.parametrize(
    ("says", "is_wanted"),
    [
        ("Redis server v=6.2.14 sha=40305114:0 malloc=libc bits=64", True),
        ("Redis server v=7.0.15 sha=00000000:0", True),
        ("Redis server v=6.0.16 sha=00000000:0", False),
        ("no version at all", False),
    ],
)
def test_a_redis_that_is_too_old_is_none(tmp_path: Path, says: str, is_wanted: bool) -> None:
    environment = program(tmp_path, says)

    assert (INSTALLED in servers.names(environment)) is is_wanted
    if not is_wanted:
        with pytest.raises(NoServerError, match="says"):
            servers.installed(environment)


def test_the_servers_under_test_are_as_new_as_they_have_to_be(redis_under_test: str) -> None:
    with redis.Redis.from_url(redis_under_test) as client:
        info = client.info("server")

    assert isinstance(info, dict)
    version = tuple(int(each) for each in str(info["redis_version"]).split(".")[:2])
    assert version >= servers.OLDEST
