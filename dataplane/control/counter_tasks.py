"""Work on the counters that a control plane asks this node for."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control.counter_messages import report_to_proto, task_from_proto
from dataplane.domain.counters import CounterReport, CounterTask, LedgerUnavailable
from dataplane.domain.limiting import LimitsUnavailable

# An administrator waits for each; more at a time are a mistake.
MAX_WAITING: Final = 8
# The one who asks gives up after a minute; what is set by then stays set.
TASK_SECONDS: Final = 120.0

TOO_MANY: Final = "Too many tasks on the counters are waiting at this node."
TOO_LONG: Final = "The counters could not be worked through in time."
NO_COUNTERS: Final = "The counters cannot be read right now."
NO_LEDGER: Final = "The ledger cannot be asked right now."
FAULT: Final = "A fault of the node, which is in its log, ended the task."

_log: Final = structlog.get_logger(__name__)
Handler = Callable[[CounterTask], Awaitable[CounterReport]]
Say = Callable[[pb.StreamConfigRequest], None]


class CounterTasks:
    """The tasks of one stream, done in their order, one at a time."""

    def __init__(self, handler: Handler | None, task_seconds: float = TASK_SECONDS) -> None:
        """Prepare; without a `handler` nothing is done and nothing is answered."""
        self._handler = handler
        self._task_seconds = task_seconds
        self._waiting: asyncio.Queue[CounterTask] = asyncio.Queue(MAX_WAITING)

    def take(self, message: pb.CounterTask, say: Say) -> None:
        """Queue a task; one that finds no room is answered at once, one of a newer kind never."""
        task = task_from_proto(message)
        if self._handler is None or task is None:
            _log.warning("counter_task_unknown", task_id=message.task_id)
            return
        try:
            self._waiting.put_nowait(task)
        except asyncio.QueueFull:
            say(_answer(CounterReport(task.task_id, TOO_MANY)))

    async def run(self, say: Say) -> None:
        """Do what was taken and say how it went, until cancelled."""
        while True:
            task = await self._waiting.get()
            if self._handler is not None:
                say(_answer(await self._report(self._handler, task)))

    async def _report(self, handler: Handler, task: CounterTask) -> CounterReport:
        try:
            async with asyncio.timeout(self._task_seconds):
                return replace(await handler(task), task_id=task.task_id)
        except TimeoutError:
            problem = TOO_LONG
        except LimitsUnavailable:
            problem = NO_COUNTERS
        except LedgerUnavailable:
            problem = NO_LEDGER
        except Exception:
            # The boundary of a task: the stream, and with it revocations, must go on.
            problem = FAULT
            _log.exception("counter_task_failed", task_id=task.task_id, kind=task.kind.value)
        return CounterReport(task.task_id, problem)


def _answer(report: CounterReport) -> pb.StreamConfigRequest:
    return pb.StreamConfigRequest(counter_report=report_to_proto(report))
