from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dev.running import RunningDev

FREE_PORTS = ("--port", "0", "--admin-port", "0", "--console-port", "0")

StartDev = Callable[..., RunningDev]


@pytest.fixture
def start_dev(tmp_path: Path) -> Iterator[StartDev]:
    """Start `dev` with stand-ins on free ports, with `--json` unless told otherwise."""
    started: list[RunningDev] = []

    def start(*options: str, json: bool = True, **keywords: object) -> RunningDev:
        as_json = ("--json",) if json else ()
        name = f"dev{len(started)}"
        running = RunningDev(tmp_path, *FREE_PORTS, *as_json, *options, name=name, **keywords)  # type: ignore[arg-type]  # keywords are passed on
        started.append(running)
        return running

    yield start
    for running in started:
        running.end()
