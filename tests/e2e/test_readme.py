"""The README's tour, run as it is written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.e2e.commands import clean_environment
from tests.e2e.stack import Stack

_README: Final = Path(__file__).parents[2] / "README.md"
_TOUR: Final = re.compile(r"^## A first tour$(.*?)^A real provider", re.DOTALL | re.MULTILINE)
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_DEADLINE_S: Final = 120.0
# `uv run` finds this project's programs; here they are those under test.
_UV: Final = 'uv() { shift; "$@"; }\n'


def blocks(language: str) -> str:
    """Return the tour's blocks of one language, one after the other."""
    tour = _TOUR.search(_README.read_text(encoding="utf-8"))
    assert tour is not None
    found = [text for name, text in _BLOCK.findall(tour[1]) if name == language]
    assert found
    return "".join(found)


def test_the_tour_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    stack = Stack(tmp_path, replicas=1)
    try:
        python = run(stack, [sys.executable, "-c", blocks("python")], "")
        assert python.split() == ["Hello", "from", "Python"] * 2

        said = run(stack, ["bash", "-euo", "pipefail"], _UV + blocks("sh"))
    finally:
        stack.stop()

    assert "data: [DONE]" in said
    assert "Hello from the command line" in said
    statuses = re.findall(r"^HTTP (\d+)$", said, re.MULTILINE)
    assert statuses == ["403", "200", "403", "200", "200", "200", "200", "429", "403"]
    refusals = re.findall(r'"code":"(\w+)"', said)
    assert refusals == [
        "device_not_approved",
        "device_suspended",
        "rate_limit_exceeded",
        "device_not_approved",
    ]
    assert '"status":"pending_approval"' in said
    assert '"reason":"a short break"' in said
    assert '"layer":"device_requests_per_minute"' in said
    assert '"layer":"ip_requests_per_day"' in said
    assert said.count("dev-1") >= 2, "each receipt names the data plane"
    assert "pending_approval → approved" in said


def run(stack: Stack, command: list[str], script: str) -> str:
    """Run a program of the tour with what `dev` printed in its environment; return what it said."""
    tools = Path(sys.executable).parent
    line = stack.line
    settings = {
        "PATH": f"{tools}:{Path(shutil.which('curl') or '/usr/bin/curl').parent}:/usr/bin:/bin",
        "TOLLKEEPER_URL": line["base_url"],
        "TOLLKEEPER_API_KEY": line["api_key"],
        "TOLLKEEPER_ADMIN_ADDRESS": line["admin_address"],
        "TOLLKEEPER_ADMIN_TOKEN": line["admin_token"],
        "XDG_CONFIG_HOME": str(stack.folder / "config"),
        "NO_PROXY": "*",
        "COLUMNS": "300",
    }
    done = subprocess.run(
        command,
        cwd=stack.folder,
        env=clean_environment(settings),
        input=script,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=_DEADLINE_S,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout
