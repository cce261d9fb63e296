"""The servers that the script has to run on: the one that comes along, and a Redis that is installed.

The embedded server is a Valkey of today; operators bring what they have. So the proofs of the
script also run on a `redis-server` found on PATH: the oldest version that is supported, or a later
one. A machine without one proves less, and says nothing about it; where `CI` is set in the
environment, a missing server is a failure.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from unittest import mock

from dataplane import embedded_redis
from dataplane.embedded_redis import RunningRedis

EMBEDDED: Final = "embedded"
INSTALLED: Final = "redis-server"
OLDEST: Final = (6, 2)


class NoServerError(Exception):
    """There is no server to prove the script on; the text says what was looked for."""


def names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the servers that a run has to cover."""
    if environment.get("CI"):
        return EMBEDDED, INSTALLED
    try:
        installed(environment)
    except NoServerError:
        return (EMBEDDED,)
    return EMBEDDED, INSTALLED


def installed(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the server on PATH.

    Raises:
        NoServerError: There is none, or one that is too old.
    """
    found = shutil.which(INSTALLED, path=environment.get("PATH", ""))
    wanted = f"the script is proven on a {INSTALLED} >= {'.'.join(map(str, OLDEST))} on PATH"
    if found is None:
        raise NoServerError(f"{wanted}: there is none")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10)
    version = re.search(r"\bv=(\d+)\.(\d+)", said.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise NoServerError(f"{wanted}: {found} says {said.stdout.strip()!r}")
    return Path(found)


def start_installed(data_dir: Path) -> RunningRedis:
    """Start the server on PATH as the embedded one is started: private, and gone with this process.

    Raises:
        NoServerError: There is none, or one that is too old.
        EmbeddedRedisError: It did not accept.
    """
    binary = installed()
    with mock.patch.object(embedded_redis, "server_binary", return_value=binary):
        return embedded_redis.start(data_dir)
