"""A process that fills a spool and dies at a given call to the disk, and what it told before."""

import asyncio
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dataplane.control.spool import Spool
from dataplane.domain.calls import UsageState
from tests.control.usage_events import usage_event

JOURNAL: Final = "journal"
_REQUESTS: Final = 260
_CALLS: Final = ("write", "fsync", "open", "unlink", "close")


def live(directory: str, deadly_call: int) -> None:
    """Open, close and acknowledge requests; die by SIGKILL at the given call to the disk."""
    journal = os.open(Path(directory, JOURNAL), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    write, numbers = os.write, itertools.count(1)

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            if next(numbers) == deadly_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return counted

    def tell(word: str, *request_ids: str) -> None:
        for request_id in request_ids:
            write(journal, f"{word} {request_id}\n".encode())

    for name in _CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    asyncio.run(_serve(Path(directory), tell))


async def _serve(directory: Path, tell: Callable[..., None]) -> None:
    spool, _ = Spool.open(directory, segment_bytes=12_000)
    ended: list[str] = []
    for number in range(_REQUESTS):
        opened = usage_event(UsageState.ABANDONED)
        spool.append_open(opened)
        spool.flush()
        tell("opened", opened.request_id)
        if number % 12 != 5:
            spool.append_close(usage_event(request=opened.request_id))
            spool.flush()
            tell("closed", opened.request_id)
            if number % 14 != 3:
                ended.append(opened.request_id)
        if len(ended) == 6:
            tell("acknowledging", *ended)
            spool.acknowledge(ended)
            tell("acknowledged", *ended)
            ended.clear()
            await asyncio.sleep(0.001)
    tell("emptied", str(spool._segments[0].number))
    await spool.aclose()
