"""A data plane as it is shipped, but that a lease of its requests ends after two seconds instead of 25.

Each is a process of its own, with the settings of `python -m dataplane`, that kills itself at a point when it
is told to. It is forked from one that has imported everything: a score of starts takes longer than what the
nodes are started for. All that count in one Redis must have the same lease: it is written into the script.
"""

import asyncio
import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

LEASE_S: Final = 2.0
_FORKS: Final = multiprocessing.get_context("forkserver")


def start(environment: Mapping[str, str], log: Path, point: str = "") -> ForkServerProcess:
    """Start one with this environment and no other; what it says is added to `log`.

    Args:
        environment: Its settings, and what else it inherits.
        log: Of it and its predecessors.
        point: Where it kills itself; it lives on without.
    """
    # The program of the tests too: each would import it anew.
    _FORKS.set_forkserver_preload(["__main__", "tests.crashes.preloaded"])
    process = _FORKS.Process(target=_serve, args=(dict(environment), log, point), daemon=True)
    process.start()
    return process


def _serve(environment: Mapping[str, str], log: Path, point: str) -> None:
    """Serve until a signal, or until the point."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    from dataplane import app
    from dataplane.settings import read_settings
    from dataplane.telemetry import configure_logging
    from tests.crashes import preloaded
    from tests.crashes.points import Point, arm

    preloaded.shorten_leases()
    if point:
        arm(Point(point))
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format, settings.log_prefix)
    asyncio.run(app.run(settings))
