"""Work on the counters that a data plane is asked for on its stream, and the wait for its report.

The control plane never talks to Redis: whoever maintains the counters there does it.
"""

import asyncio
import secrets
from typing import Any, Final

from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.domain.errors import DeadlineError, LimitsUnavailableError, OverloadedError
from controlplane.snapshots.watcher import Watcher

# Administrators who compare all counters at the same time; more would only wait for each other.
MAX_RUNNING: Final = 8


class CounterTasks:
    """The tasks that somebody waits for."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Watcher, asyncio.Future[pb.CounterReport]]] = {}

    async def run(
        self, watcher: Watcher, kind: pb.CounterTaskKind.ValueType, deadline_s: float
    ) -> pb.CounterReport:
        """Ask a node for a task and wait for its report.

        Raises:
            OverloadedError: Too many tasks run already.
            LimitsUnavailableError: The stream of the node ended meanwhile.
            DeadlineError: It did not answer within `deadline_s`.
        """
        if len(self._running) >= MAX_RUNNING:
            raise OverloadedError("too many tasks run at the counters; try again later")
        task = pb.CounterTask(task_id=secrets.token_hex(8), kind=kind)
        report: asyncio.Future[pb.CounterReport] = asyncio.get_running_loop().create_future()
        self._running[task.task_id] = watcher, report
        watcher.ask(task)
        try:
            ends: set[asyncio.Future[Any]] = {report, watcher.ended}  # Any: a report, or a reason
            await asyncio.wait(ends, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if report.done():
                return report.result()
            if watcher.ended.done():
                raise LimitsUnavailableError(f"data plane {watcher.node_id} went away meanwhile")
            raise DeadlineError(f"data plane {watcher.node_id} did not answer in time")
        finally:
            del self._running[task.task_id]
            watcher.withdraw(task)

    def hear(self, watcher: Watcher, report: pb.CounterReport) -> None:
        """Note the outcome of a task; of one that nobody waits for, or that another node was asked for, it is dropped."""
        asked, waiting = self._running.get(report.task_id, (None, None))
        if asked is watcher and waiting is not None and not waiting.done():
            waiting.set_result(report)
