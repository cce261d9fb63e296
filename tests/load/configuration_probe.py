"""A node that follows `configuration_source`, and what that costs it.

    python -m tests.load.configuration_probe PORT

Says on stdout, as JSON lines, what it held in memory before the first transfer and after each, the most it ever held
meanwhile, and for how long its event loop was held at most. It ends when its stdin does.
"""

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from dataplane.app import GC_THRESHOLDS
from dataplane.changes import Changes
from dataplane.control.compile import Compiler
from dataplane.control.current import CurrentSnapshot
from dataplane.control.watch import Node, Watch

_TICK_S: Final = 0.001


def memory_kib(name: str) -> int:
    """Return `VmRSS` or `VmHWM` of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(name + ":")]
    return int(line.split()[1])


class LoopWatch:
    """Measures how late the event loop is with what is due."""

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self.longest_ms = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - due_s) * 1000)


async def follow(port: int) -> None:
    """Follow the source until stdin ends."""
    changes, current, loop_watch = Changes(), CurrentSnapshot(), LoopWatch()
    watch = Watch(
        (f"127.0.0.1:{port}",),
        Node("probe", "0.1.0", "x" * 32),
        current,
        lambda: time.time_ns() // 1_000_000,
        changes=changes,
        compiler=Compiler(),
    )
    # As the data plane does before it serves.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    _say(rss_kib=memory_kib("VmRSS"))
    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(loop_watch.run())]
    revision = 0
    while revision < 3:
        number = changes.number
        if watch.holdings.position.revision > revision:
            revision = watch.holdings.position.revision
            # What the change left behind is let go of, and freed, in the turns after it.
            await asyncio.sleep(1.0)
            _say(
                revision=revision,
                rss_kib=memory_kib("VmRSS"),
                peak_kib=memory_kib("VmHWM"),
                longest_ms=loop_watch.longest_ms,
                apply_ms=watch.figures.apply_ms,
            )
            loop_watch.longest_ms = 0.0
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            continue
        await changes.after(number, 60.0)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()


def _say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(follow(int(sys.argv[1])))
